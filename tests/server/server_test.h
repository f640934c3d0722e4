/* What the scenarios of server_test are made of: a server process, and peers, which are connections to it. */
#ifndef SERVER_TEST_H
#define SERVER_TEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    PATIENCE_MS = 10000, /* how long anything that must happen may take */
    N_PEERS = 200,
    N_ROOMS = 64,
};

/* Prints what is wrong, and the seed, and ends the program; a server that runs is killed with it. */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
void step(const char *format, ...) __attribute__((format(printf, 1, 2)));

int64_t now_ms(void);
void seed_random(uint64_t seed);
unsigned random_below(unsigned n);

/* ---- process.c ------------------------------------------------------------------------------------------- */

struct process {
    pid_t pid;
    int out;  /* its standard output */
    int log;  /* its standard error, a file */
    int port; /* where it listens */
};

struct account {
    uint64_t connections, created, gone, farewells;
};

/* Runs it to its end; returns the exit status. What it prints is left in @out and @err, NUL-terminated. */
int run_program(char *const argv[], char *out, char *err, size_t size);
void server_start(struct process *server, const char *program, const char *n_threads);
bool server_has_logged(const struct process *server, const char *text);
/* Waits for its end, which must be clean, with an account that is right. */
struct account server_wait(struct process *server);

/* ---- peer.c ---------------------------------------------------------------------------------------------- */

/* A connection. Lines are taken one by one (peer_line), or, in a crowd, by crowd_pump() as they come. */
struct peer {
    int fd; /* -1: not connected */
    unsigned id;
    bool eof, reset;
    size_t n_in, in_at;
    char in[8192];

    /* In a crowd: what it has asked for, and been told. */
    bool quitting;
    int room;                     /* after the last JOINED; -1: none */
    int asked[64];                /* rooms of the JOINs that are under way */
    unsigned n_asked, n_answered; /* counts of JOIN, of JOINED */
    unsigned n_said;              /* since the last JOIN */
    unsigned n_echo;              /* its own words that came back, since the last JOINED */
    unsigned n_heard;             /* words heard since crowd_speak() began */
    unsigned n_errors;
};

/* Also waits for WELCOME. @receive_buffer: 0 for the system's choice. */
void peer_connect(struct peer *peer, int port, int receive_buffer);
void peer_close(struct peer *peer, bool reset);
void peer_send(struct peer *peer, const char *data, size_t size); /* reads nothing meanwhile: for what is small */
void peer_say(struct peer *peer, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *peer_line(struct peer *peer); /* NULL: the end */
void peer_expect(struct peer *peer, const char *line);
void peer_expect_end(struct peer *peer);
/* Takes what has come, without waiting. Returns whether there was something; the end counts. */
bool peer_fill(struct peer *peer);
/* A whole line of what has come, or NULL. */
const char *peer_next(struct peer *peer);
/* Which rooms there are now. @rooms: N_ROOMS + 1 flags for "room-0" ...; the last one: any other. */
void peer_ask_rooms(struct peer *peer, bool *rooms);

/* ---- crowd.c --------------------------------------------------------------------------------------------- */

/* Everything that the crowd hears is checked: who speaks is heard in order, without gap or repetition. */
void crowd_start(int port);
void crowd_do_something(unsigned how_often); /* random acts of random peers; checks what comes meanwhile */
void crowd_settle(void);                     /* until all is answered */
void crowd_check_rooms(struct peer *witness, bool at_once);
void crowd_speak(unsigned n_words); /* all who are in a room; until all have heard all, once */
void crowd_move(bool with_hang_ups);
void crowd_leave(void);
void crowd_await_end(void); /* the server is ending: until everyone has been cut off */
uint64_t crowd_connections(void);

#endif
