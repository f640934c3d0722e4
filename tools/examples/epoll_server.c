/* epoll_server: options, the listening socket, signals, and the account at the end. server.h tells how it works. */
#define _GNU_SOURCE /* accept4 */
#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX_THREADS = 64, EXIT_ACCOUNT = 1, EXIT_CANNOT = 2 };

/* clang-format off */
static const char usage[] =
    "usage: epoll_server [--port N] [--threads N]\n"
    "\n"
    "A chat server on 127.0.0.1. Say, for example with `nc 127.0.0.1 PORT`:\n"
    "  JOIN room   go there, and leave where you were; rooms come and go with who is in them\n"
    "  SAY text    to all in your room, you included\n"
    "  ROOMS       which rooms there are\n"
    "  QUIT        (or just hang up)\n"
    "A line has at most 512 bytes.\n"
    "\n"
    "  -p, --port N      0 to 65535; 0, the default: a free one, which is printed\n"
    "  -t, --threads N   1 to 64 workers (default: 4)\n"
    "  -h, --help        this text\n"
    "\n"
    "SIGTERM or Ctrl-C ends it. Exits 0: as many rooms have gone, and been bidden farewell,\n"
    "as were made; 1: not so; 2: wrong usage, or the port cannot be had.\n";
/* clang-format on */

static int complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

static int complain(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("epoll_server: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return EXIT_CANNOT;
}

/* Returns 0 or EXIT_CANNOT. */
static int parse_number(const char *option, const char *text, long min, long max, long *number)
{
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n < min || n > max)
        return complain("%s takes a whole number from %ld to %ld, not '%s'", option, min, max, text);
    *number = n;
    return 0;
}

/* Returns -1 to go on, else the exit status. */
static int parse(int argc, char **argv, long *port, long *n_threads)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"threads", required_argument, NULL, 't'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    opterr = 0;
    int option, status = 0;
    while (status == 0 && (option = getopt_long(argc, argv, ":p:t:h", options, NULL)) != -1) {
        switch (option) {
        case 'p':
            status = parse_number("--port", optarg, 0, 65535, port);
            break;
        case 't':
            status = parse_number("--threads", optarg, 1, MAX_THREADS, n_threads);
            break;
        case 'h':
            fputs(usage, stdout);
            return 0;
        case ':':
            return complain("%s wants a value; see epoll_server --help", argv[optind - 1]);
        default:
            return complain("there is no option %s; see epoll_server --help", argv[optind - 1]);
        }
    }
    if (status != 0)
        return status;
    if (optind < argc)
        return complain("'%s' is too much; see epoll_server --help", argv[optind]);
    return -1;
}

/* Returns the socket, and its port in @port; or -1 with errno set. Not SO_REUSEPORT, with a socket for each worker: then
 * a second server on the same port would start without a word, and share its callers with the first. */
static int listen_on(long *port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)*port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &(int){1}, sizeof(int));
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, size) != 0 || listen(fd, SOMAXCONN) != 0 ||
        getsockname(fd, (struct sockaddr *)&address, &size) != 0)
        return -1;
    *port = ntohs(address.sin_port);
    return fd;
}

/* Accepts who waits, and hands them out in turn. Returns false where nobody can be accepted for now. */
static bool accept_all(struct server *server, int listener, uint64_t *n_connections)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                return false;
            if (errno == EAGAIN || errno == EWOULDBLOCK)
                return true;
            continue; /* this caller has hung up already, or a signal came */
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
        /* The kernel's share of what waits for a slow reader is to be bounded, too. */
        setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &(int){OUT_SIZE}, sizeof(int));
        struct conn *conn = conn_new(fd, *n_connections + 1);
        if (conn == NULL) {
            close(fd);
            return false;
        }
        conn->worker = &server->workers[*n_connections % server->n_workers];
        ++*n_connections;
        worker_post(conn->worker, conn);
    }
}

static void serve(struct server *server, int listener, int signals, uint64_t *n_connections)
{
    enum { PAUSE_MS = 100 };
    bool accepting = true;
    for (;;) {
        /* Where accept fails for want of something, the listener stays readable: look away for a moment. */
        struct pollfd fds[] = {{signals, POLLIN, 0}, {accepting ? listener : -1, POLLIN, 0}};
        int n = poll(fds, 2, accepting ? -1 : PAUSE_MS);
        if (n > 0 && fds[0].revents != 0)
            return;
        if (!accepting || (n > 0 && fds[1].revents != 0))
            accepting = accept_all(server, listener, n_connections);
    }
}

/* Returns the exit status. Where something cannot be had at the start there is nothing to clean up yet: the end of the
 * program does it. */
static int run(long port, unsigned n_threads)
{
    static struct server server = {.lock = PTHREAD_MUTEX_INITIALIZER};
    server.rooms = wr_value_dict_new(NULL);
    server.workers = calloc(n_threads, sizeof *server.workers);
    server.n_workers = n_threads;
    if (server.rooms == NULL || server.workers == NULL)
        return complain("out of memory");
    int listener = listen_on(&port);
    if (listener < 0)
        return complain("cannot listen on port %ld: %s; try --port 0", port, strerror(errno));

    /* Before there are threads: they inherit that signals come to the descriptor alone. */
    sigset_t ends;
    sigemptyset(&ends);
    sigaddset(&ends, SIGTERM);
    sigaddset(&ends, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ends, NULL);
    signal(SIGPIPE, SIG_IGN); /* also where it is standard error that hangs up */
    int signals = signalfd(-1, &ends, SFD_CLOEXEC);
    if (signals < 0)
        return complain("cannot start: %s", strerror(errno));
    for (unsigned i = 0; i < n_threads; i++) {
        int status = worker_start(&server.workers[i], &server, i + 1);
        if (status != 0)
            return complain("cannot start worker %u of %u: %s", i + 1, n_threads, strerror(-status));
    }

    printf("listening on 127.0.0.1:%ld\n", port);
    fflush(stdout);
    uint64_t n_connections = 0;
    serve(&server, listener, signals, &n_connections);
    close(listener);
    close(signals);

    /* The workers let go of their connections, these of their rooms. When all have done so nobody is left to post to
     * another, or to make a room: only then are the letter boxes and the queues emptied for good. */
    for (unsigned i = 0; i < n_threads; i++)
        worker_stop(&server.workers[i]);
    for (unsigned i = 0; i < n_threads; i++)
        pthread_join(server.workers[i].thread, NULL);
    for (unsigned i = 0; i < n_threads; i++)
        worker_finish(&server.workers[i]);
    wr_value_dict_free(server.rooms);
    wr_barrier(); /* what the library still had to free */
    free(server.workers);

    printf("connections %" PRIu64 ", rooms created %" PRIu64 ", rooms gone %" PRIu64 ", farewells %" PRIu64 "\n",
           n_connections, server.n_created, server.n_gone, server.n_farewells);
    bool right = server.n_created == server.n_gone && server.n_gone == server.n_farewells;
    return right ? 0 : EXIT_ACCOUNT;
}

int main(int argc, char **argv)
{
    long port = 0, n_threads = 4;
    int status = parse(argc, argv, &port, &n_threads);
    if (status == -1)
        status = run(port, (unsigned)n_threads);
    if ((fflush(stdout) != 0 || ferror(stdout)) && status == 0)
        status = complain("cannot write to standard output: %s", strerror(errno));
    return status;
}
