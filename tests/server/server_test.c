/* usage: server_test EPOLL_SERVER [SEED]
 *
 * Runs the server and calls on it: politely, in a crowd of 200, rudely, and with the end coming in the middle of it.
 * Exits 0: all is well, 1: something is not, 2: usage. */
#include "server_test.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define UNKNOWN "ERR unknown command; there are: JOIN room, SAY text, ROOMS, QUIT"

static uint64_t n_extra; /* connections beside the crowd's */

static void visit(struct peer *peer, const struct process *server)
{
    peer_connect(peer, server->port, 0);
    n_extra++;
}

/* ---- options --------------------------------------------------------------------------------------------- */

static void try_options(char *program)
{
    step("options");
    static const struct {
        const char *option, *value, *message;
    } bad[] = {
        {"--port", "65536", "epoll_server: --port takes a whole number from 0 to 65535, not '65536'\n"},
        {"--port", "8o", "epoll_server: --port takes a whole number from 0 to 65535, not '8o'\n"},
        {"--threads", "0", "epoll_server: --threads takes a whole number from 1 to 64, not '0'\n"},
        {"--threads", "", "epoll_server: --threads takes a whole number from 1 to 64, not ''\n"},
        {"--port", NULL, "epoll_server: --port wants a value; see epoll_server --help\n"},
        {"--frobnicate", NULL, "epoll_server: there is no option --frobnicate; see epoll_server --help\n"},
        {"room", NULL, "epoll_server: 'room' is too much; see epoll_server --help\n"},
    };
    char out[2048], err[2048], option[32], value[32];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        snprintf(option, sizeof option, "%s", bad[i].option);
        snprintf(value, sizeof value, "%s", bad[i].value == NULL ? "" : bad[i].value);
        char *argv[] = {program, option, bad[i].value == NULL ? NULL : value, NULL};
        int status = run_program(argv, out, err, sizeof out);
        if (status != 2 || *out != '\0' || strcmp(err, bad[i].message) != 0)
            fail("%s %s: exit %d, '%s', '%s'", option, value, status, out, err);
    }
    snprintf(option, sizeof option, "--help");
    char *argv[] = {program, option, NULL};
    if (run_program(argv, out, err, sizeof out) != 0 || strncmp(out, "usage: epoll_server ", 20) != 0 || *err != '\0')
        fail("--help: '%s', '%s'", out, err);
}

static void try_taken_port(char *program, const struct process *server)
{
    char out[2048], err[2048], option[] = "--port", port[16];
    snprintf(port, sizeof port, "%d", server->port);
    char *argv[] = {program, option, port, NULL};
    int status = run_program(argv, out, err, sizeof out);
    if (status != 2 || *out != '\0' || strstr(err, "epoll_server: cannot listen on port ") != err)
        fail("a taken port: exit %d, '%s', '%s'", status, out, err);
}

/* ---- one by one ------------------------------------------------------------------------------------------ */

static void expect_no_rooms(struct peer *peer)
{
    peer_say(peer, "ROOMS\n");
    peer_expect(peer, "END 0 of 0");
}

static void try_manners(const struct process *server)
{
    step("one by one");
    struct peer a, b;
    char said[700], line[700];
    visit(&a, server);
    visit(&b, server);
    expect_no_rooms(&a);
    peer_say(&a, "SAY hello\nJOIN\nJOIN \nJOIN a room\nJOIN %033d\njoin x\n\n \nJOIN %032d\n", 0, 0);
    peer_expect(&a, "ERR join a room first");
    peer_expect(&a, UNKNOWN);
    for (int i = 0; i < 3; i++)
        peer_expect(&a, "ERR a room's name is 1 to 32 letters, digits, - or _");
    for (int i = 0; i < 3; i++)
        peer_expect(&a, UNKNOWN);
    peer_expect(&a, "JOINED 00000000000000000000000000000000");

    /* Moving: the room that is left is gone before the answer comes. */
    peer_say(&a, "JOIN room-1\r\n");
    peer_expect(&a, "JOINED room-1");
    bool rooms[N_ROOMS + 1];
    peer_ask_rooms(&b, rooms);
    if (!rooms[1] || rooms[N_ROOMS])
        fail("the room that was left is still there");
    /* Twice into the same room: in it once. */
    peer_say(&b, "JOIN room-1\nJOIN room-1\nSAY  two  words \n");
    peer_expect(&b, "JOINED room-1");
    peer_expect(&b, "JOINED room-1");
    snprintf(said, sizeof said, "SAID room-1 %u  two  words ", b.id);
    peer_expect(&a, said);
    peer_expect(&b, said);

    /* The longest line, byte by byte; text of any language; nothing that a terminal might obey. */
    snprintf(line, sizeof line, "SAY %0508d\n", 7);
    for (const char *c = line; *c != '\0'; c++)
        peer_send(&a, c, 1);
    snprintf(said, sizeof said, "SAID room-1 %u %0508d", a.id, 7);
    peer_expect(&a, said);
    peer_expect(&b, said);
    peer_say(&a, "SAY gr\303\274\303\237e\tdich\nSAY \033[2J\n");
    snprintf(said, sizeof said, "SAID room-1 %u gr\303\274\303\237e\tdich", a.id);
    peer_expect(&a, said);
    peer_expect(&a, "ERR a line is plain text");
    peer_expect(&b, said);
    peer_send(&a, "ROOMS\0\n", 7);
    peer_expect(&a, "ERR a line is plain text");

    /* One byte too long: the answer comes through though more is on its way, and the room knows at once. */
    snprintf(line, sizeof line, "SAY %0509d\nSAY never\n", 7);
    peer_say(&a, "%s", line);
    peer_expect(&a, "ERR line too long");
    peer_expect_end(&a);

    /* Half closed: what was asked is answered, then the end. */
    peer_say(&b, "SAY last\nROOMS\nSAY half");
    shutdown(b.fd, SHUT_WR);
    snprintf(said, sizeof said, "SAID room-1 %u last", b.id);
    peer_expect(&b, said);
    peer_expect(&b, "ROOM room-1");
    peer_expect(&b, "END 1 of 1");
    peer_expect_end(&b);

    visit(&a, server);
    expect_no_rooms(&a);
    peer_say(&a, "JOIN x\nQUIT\nROOMS\n");
    peer_expect(&a, "JOINED x");
    peer_expect(&a, "BYE");
    peer_expect_end(&a);
}

/* ---- the crowd ------------------------------------------------------------------------------------------- */

static void try_crowd(const struct process *server)
{
    struct peer witness;
    visit(&witness, server);
    crowd_start(server->port);
    step("a crowd that takes turns");
    for (unsigned round = 0; round < 6; round++) {
        bool with_hang_ups = round % 2 != 0;
        crowd_move(with_hang_ups);
        crowd_check_rooms(&witness, !with_hang_ups); /* a hang-up is noticed a little later */
        crowd_speak(3);
    }
    step("a crowd that does not");
    int64_t end = now_ms() + 1500;
    while (now_ms() < end)
        crowd_do_something(256);
    crowd_settle();
    crowd_check_rooms(&witness, false);
    crowd_speak(3);
    step("%llu connections so far; all go", (unsigned long long)crowd_connections());
    crowd_leave();
    crowd_check_rooms(&witness, true);
    peer_close(&witness, false);
}

/* ---- rudeness -------------------------------------------------------------------------------------------- */

/* Goes on living while others misbehave. */
static void check_service(struct peer *peer)
{
    static unsigned n;
    char said[64];
    peer_say(peer, "SAY still here %u\n", ++n);
    snprintf(said, sizeof said, "SAID service %u still here %u", peer->id, n);
    peer_expect(peer, said);
}

/* Sends what it can of @data and takes all that has come; returns how much was sent. */
static size_t push(struct peer *peer, const char *data, size_t size, unsigned *n_lines)
{
    ssize_t sent = send(peer->fd, data, size, MSG_NOSIGNAL);
    while (n_lines != NULL && peer_fill(peer)) {
        const char *line;
        while ((line = peer_next(peer)) != NULL) {
            if (strncmp(line, "ERR ", 4) != 0)
                fail("garbage is answered with '%s'", line);
            ++*n_lines;
        }
    }
    if (sent < 0) {
        struct pollfd fd = {peer->fd, POLLIN | POLLOUT, 0};
        poll(&fd, 1, 10);
        return 0;
    }
    return (size_t)sent;
}

static size_t garbage(char *data, size_t size, size_t longest)
{
    size_t n_lines = 0, in_line = 0;
    for (size_t i = 0; i < size; i++) {
        data[i] = (char)random_below(256);
        if (++in_line == longest || i + 1 == size)
            data[i] = '\n';
        if (data[i] == '\n') {
            in_line = 0;
            n_lines++;
        }
    }
    return n_lines;
}

static void try_garbage(const struct process *server, struct peer *service)
{
    enum { SIZE = 512 << 10 };
    step("garbage");
    char *data = malloc(SIZE);
    if (data == NULL)
        fail("out of memory");
    struct peer peer;
    visit(&peer, server);
    size_t n_lines = garbage(data, SIZE, 512);
    unsigned n_answers = 0;
    int64_t deadline = now_ms() + PATIENCE_MS;
    for (size_t at = 0; at < SIZE || n_answers < n_lines;) {
        if (at < SIZE)
            at += push(&peer, data + at, SIZE - at, &n_answers);
        else
            push(&peer, NULL, 0, &n_answers);
        if (peer.eof || now_ms() > deadline)
            fail("%zu lines of garbage, and %u answers until %s", n_lines, n_answers, peer.eof ? "the end" : "now");
        check_service(service);
    }
    if (n_answers != n_lines)
        fail("%zu lines of garbage, but %u answers", n_lines, n_answers);
    peer_say(&peer, "QUIT\n");
    peer_expect(&peer, "BYE");
    peer_expect_end(&peer);

    step("garbage without end of line");
    visit(&peer, server);
    for (size_t i = 0; i < SIZE; i++)
        data[i] = (char)(1 + random_below(9));
    peer_send(&peer, data, SIZE);
    peer_expect(&peer, "ERR line too long");
    peer_expect_end(&peer);

    /* More answers than anybody would keep for it: the server must stop reading, and go on when it is listened to. */
    step("questions without listening");
    enum { N_QUESTIONS = 50000 };
    peer_connect(&peer, server->port, 4096);
    n_extra++;
    for (size_t i = 0; i < N_QUESTIONS; i++)
        memcpy(data + 6 * i, "ROOMS\n", 6);
    size_t at = 0;
    bool done = false;
    for (int64_t until = now_ms() + 200; now_ms() < until && at < 6 * N_QUESTIONS;)
        at += push(&peer, data + at, 6 * N_QUESTIONS - at, NULL);
    check_service(service);
    unsigned n_ends = 0;
    deadline = now_ms() + PATIENCE_MS;
    while (!peer.eof) {
        if (now_ms() > deadline)
            fail("%d questions, and %u answers until now", N_QUESTIONS, n_ends);
        if (at < 6 * N_QUESTIONS)
            at += push(&peer, data + at, 6 * N_QUESTIONS - at, NULL);
        else if (!done)
            done = shutdown(peer.fd, SHUT_WR) == 0;
        const char *line;
        if (!peer_fill(&peer))
            poll(&(struct pollfd){peer.fd, POLLIN, 0}, 1, 10);
        while ((line = peer_next(&peer)) != NULL)
            n_ends += strncmp(line, "END ", 4) == 0;
    }
    if (n_ends != N_QUESTIONS)
        fail("%d questions, but %u answers", N_QUESTIONS, n_ends);
    peer_close(&peer, false);
    free(data);
}

static void try_slow_reader(const struct process *server, struct peer *service)
{
    step("a slow reader");
    enum { MOST = 20000 };
    struct peer slow, other, speaker;
    peer_connect(&slow, server->port, 4096);
    n_extra++;
    visit(&other, server);
    visit(&speaker, server);
    struct peer *all[] = {&slow, &other, &speaker};
    for (int i = 0; i < 3; i++) {
        peer_say(all[i], "JOIN mill\n");
        peer_expect(all[i], "JOINED mill");
    }
    char wanted[64], said[600];
    snprintf(wanted, sizeof wanted, "connection %u reads too slowly: closed", slow.id);
    unsigned n = 0;
    while (n % 64 != 0 || !server_has_logged(server, wanted)) {
        if (n == MOST)
            fail("it is never cut off");
        peer_say(&speaker, "SAY %0480u\n", n);
        snprintf(said, sizeof said, "SAID mill %u %0480u", speaker.id, n++);
        peer_expect(&speaker, said);
        peer_expect(&other, said);
    }
    check_service(service);
    /* It hears the beginning without a gap, and, if it hurries now, why it is no more. */
    const char *line;
    unsigned n_heard = 0;
    while ((line = peer_line(&slow)) != NULL && strncmp(line, "SAID", 4) == 0) {
        snprintf(said, sizeof said, "SAID mill %u %0480u", speaker.id, n_heard++);
        if (strcmp(line, said) != 0)
            fail("the slow reader is told '%s' instead of '%s'", line, said);
    }
    if (line != NULL && strcmp(line, "ERR you read too slowly") != 0)
        fail("the slow reader is told '%s'", line);
    step("cut off after %u words, has %u, and %s", n, n_heard, line == NULL ? "no reason" : "the reason");
    for (int i = 0; i < 3; i++)
        peer_close(all[i], i == 0);
}

enum { N_DOOMED = N_ROOMS + 16 };

/* Many who hold rooms and speak, until they are killed. */
static void be_killed(const struct process *server, int ready)
{
    enum { N = N_DOOMED };
    static struct peer peers[N];
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (unsigned i = 0; i < N; i++) {
        peer_connect(&peers[i], server->port, 0);
        peer_say(&peers[i], "JOIN room-%u\n", i % N_ROOMS);
        char joined[32];
        snprintf(joined, sizeof joined, "JOINED room-%u", i % N_ROOMS);
        peer_expect(&peers[i], joined);
    }
    if (write(ready, "", 1) != 1)
        _exit(1);
    for (;;) {
        for (unsigned i = 0; i < N; i++) {
            peer_say(&peers[i], "SAY help %u\n", i);
            while (peer_fill(&peers[i]))
                while (peer_next(&peers[i]) != NULL)
                    ;
        }
    }
}

static void try_killing(const struct process *server, struct peer *service)
{
    step("clients that are killed");
    int ready[2];
    char byte;
    if (pipe(ready) != 0)
        fail("no pipe");
    pid_t pid = fork();
    if (pid < 0)
        fail("no process");
    if (pid == 0) {
        close(ready[0]);
        be_killed(server, ready[1]);
        _exit(1);
    }
    close(ready[1]);
    struct pollfd fd = {ready[0], POLLIN, 0};
    if (poll(&fd, 1, PATIENCE_MS) != 1 || read(ready[0], &byte, 1) != 1)
        fail("the clients to be killed are never ready");
    n_extra += N_DOOMED;
    bool rooms[N_ROOMS + 1];
    peer_ask_rooms(service, rooms);
    for (int i = 0; i < N_ROOMS; i++)
        if (!rooms[i])
            fail("room-%d is not there", i);
    int64_t until = now_ms() + 100 + random_below(100);
    while (now_ms() < until)
        check_service(service);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    close(ready[0]);
    int64_t deadline = now_ms() + PATIENCE_MS;
    int n_left;
    do {
        if (now_ms() > deadline)
            fail("rooms of the killed stay");
        peer_ask_rooms(service, rooms);
        n_left = 0;
        for (int i = 0; i < N_ROOMS; i++)
            n_left += rooms[i];
    } while (n_left > 0);
}

/* ---- the end --------------------------------------------------------------------------------------------- */

/* The server is told to end in the middle of traffic. @n_others: connections made before the crowd came. */
static void try_end(struct process *server, int signal_number, uint64_t n_others)
{
    step("the end, by signal %d, in the middle of it", signal_number);
    crowd_start(server->port);
    int64_t end = now_ms() + 300;
    while (now_ms() < end)
        crowd_do_something(256);
    kill(server->pid, signal_number);
    crowd_await_end();
    struct account account = server_wait(server);
    step("connections %llu, rooms created %llu, gone %llu, farewells %llu", (unsigned long long)account.connections,
         (unsigned long long)account.created, (unsigned long long)account.gone, (unsigned long long)account.farewells);
    if (account.connections != crowd_connections() + n_others)
        fail("there were %llu connections", (unsigned long long)(crowd_connections() + n_others));
    if (account.created < N_ROOMS / 2)
        fail("there were hardly any rooms");
}

int main(int argc, char **argv)
{
    if (argc < 2 || argc > 3) {
        fputs("usage: server_test EPOLL_SERVER [SEED]\n", stderr);
        return 2;
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t seed = argc == 3 ? strtoull(argv[2], NULL, 0)
                              : ((uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000) % 1000000000;
    seed_random(seed);
    step("seed %llu", (unsigned long long)seed);

    try_options(argv[1]);
    struct process server;
    server_start(&server, argv[1], "4");
    try_taken_port(argv[1], &server);
    try_manners(&server);
    try_crowd(&server);
    uint64_t n_crowd = crowd_connections();
    struct peer service;
    visit(&service, &server);
    peer_say(&service, "JOIN service\n");
    peer_expect(&service, "JOINED service");
    try_garbage(&server, &service);
    try_slow_reader(&server, &service);
    try_killing(&server, &service);
    if (!server_has_logged(&server, "worker 1: farewell: room ") ||
        !server_has_logged(&server, "worker 4: farewell: room "))
        fail("some worker bids nobody farewell");
    try_end(&server, SIGTERM, n_extra + n_crowd);
    peer_expect_end(&service);

    server_start(&server, argv[1], "1");
    try_end(&server, SIGINT, 0);
    step("all is well");
    return 0;
}
