/* The server as a process: started, watched, asked for its account. */
#include "server_test.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static uint64_t first_seed, random_state;

void fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fputs("FAILED: ", stderr);
    vfprintf(stderr, format, args);
    fprintf(stderr, " (seed %" PRIu64 ")\n", first_seed);
    va_end(args);
    exit(1);
}

void step(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    printf("%7.3f  ", (double)now_ms() / 1000);
    vprintf(format, args);
    putchar('\n');
    fflush(stdout);
    va_end(args);
}

int64_t now_ms(void)
{
    static struct timespec start;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (start.tv_sec == 0)
        start = now;
    return (now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000;
}

void seed_random(uint64_t seed)
{
    first_seed = random_state = seed;
}

/* splitmix64 */
unsigned random_below(unsigned n)
{
    uint64_t z = random_state += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return (unsigned)((z ^ (z >> 31)) % n);
}

static int log_file(void)
{
    FILE *file = tmpfile();
    if (file == NULL)
        fail("no temporary file");
    int fd = fcntl(fileno(file), F_DUPFD_CLOEXEC, 3);
    fclose(file);
    return fd;
}

static void spawn(struct process *process, char *const argv[])
{
    int ends[2];
    process->log = log_file();
    if (pipe(ends) != 0)
        fail("no pipe");
    process->pid = fork();
    if (process->pid < 0)
        fail("no process");
    if (process->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        dup2(ends[1], STDOUT_FILENO);
        dup2(process->log, STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        execv(argv[0], argv);
        _exit(127);
    }
    close(ends[1]);
    fcntl(ends[0], F_SETFD, FD_CLOEXEC);
    process->out = ends[0];
}

static void read_log(const struct process *process, char *text, size_t size)
{
    ssize_t got = pread(process->log, text, size - 1, 0);
    text[got < 0 ? 0 : got] = '\0';
}

/* Until its end, or the end of the line. */
static void read_out(const struct process *process, char *text, size_t size, bool one_line)
{
    int64_t deadline = now_ms() + PATIENCE_MS;
    size_t used = 0;
    while (used + 1 < size) {
        struct pollfd fd = {process->out, POLLIN, 0};
        if (poll(&fd, 1, (int)(deadline > now_ms() ? deadline - now_ms() : 0)) <= 0)
            fail("the server says nothing more");
        ssize_t got = read(process->out, text + used, one_line ? 1 : size - used - 1);
        if (got <= 0)
            break;
        used += (size_t)got;
        if (one_line && text[used - 1] == '\n')
            break;
    }
    text[used] = '\0';
}

static int await_exit(struct process *process)
{
    int status;
    if (waitpid(process->pid, &status, 0) != process->pid)
        fail("no status of the server");
    process->pid = 0;
    if (!WIFEXITED(status))
        fail("the server was ended by signal %d", WTERMSIG(status));
    return WEXITSTATUS(status);
}

int run_program(char *const argv[], char *out, char *err, size_t size)
{
    struct process process;
    spawn(&process, argv);
    read_out(&process, out, size, false);
    int status = await_exit(&process);
    read_log(&process, err, size);
    close(process.out);
    close(process.log);
    return status;
}

static void show_log(const struct process *server)
{
    char text[2048];
    struct stat info;
    if (fstat(server->log, &info) != 0)
        return;
    off_t most = sizeof text - 1;
    off_t from = info.st_size > most ? info.st_size - most : 0;
    ssize_t got = pread(server->log, text, sizeof text - 1, from);
    text[got < 0 ? 0 : got] = '\0';
    fputs(text, stderr);
}

void server_start(struct process *server, const char *program, const char *n_threads)
{
    char *argv[] = {(char *)(uintptr_t)program, (char *)(uintptr_t) "--threads", (char *)(uintptr_t)n_threads, NULL};
    spawn(server, argv);
    char line[128];
    read_out(server, line, sizeof line, true);
    if (sscanf(line, "listening on 127.0.0.1:%d\n", &server->port) != 1) {
        show_log(server);
        fail("the server says '%s' when it starts", line);
    }
}

/* Reads the log line by line; returns how many lines have @text. */
static uint64_t count_in_log(const struct process *server, const char *text)
{
    uint64_t n = 0;
    char line[4096];
    size_t used = 0;
    ssize_t got;
    /* pread: the file's position is the server's, too, which writes there. */
    for (off_t from = 0; (got = pread(server->log, line + used, sizeof line - 1 - used, from)) > 0; from += got) {
        used += (size_t)got;
        line[used] = '\0';
        char *begin = line, *newline;
        while ((newline = strchr(begin, '\n')) != NULL) {
            *newline = '\0';
            n += strstr(begin, text) != NULL;
            begin = newline + 1;
        }
        used -= (size_t)(begin - line);
        memmove(line, begin, used);
        if (used == sizeof line - 1)
            fail("the server logs a very long line");
    }
    return n;
}

bool server_has_logged(const struct process *server, const char *text)
{
    return count_in_log(server, text) > 0;
}

struct account server_wait(struct process *server)
{
    struct account account;
    char text[512];
    read_out(server, text, sizeof text, false);
    int status = await_exit(server);
    char rest;
    int n = sscanf(
        text, "connections %" SCNu64 ", rooms created %" SCNu64 ", rooms gone %" SCNu64 ", farewells %" SCNu64 "%c",
        &account.connections, &account.created, &account.gone, &account.farewells, &rest);
    if (status != 0 || n != 5 || rest != '\n') {
        show_log(server);
        fail("the server exits %d and says '%s'", status, text);
    }
    if (account.created != account.gone || account.gone != account.farewells)
        fail("the account is not right: %s", text);
    uint64_t logged = count_in_log(server, "farewell: room ");
    if (logged != account.farewells)
        fail("%" PRIu64 " farewells, %" PRIu64 " in the log", account.farewells, logged);
    close(server->out);
    close(server->log);
    return account;
}
