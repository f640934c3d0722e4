/* 200 peers that come, move, speak and go, and check all that they hear.
 *
 * The nth word of somebody's mth stay (in a room) is the line "SAY m n". So who hears it can tell whether one is missing,
 * comes twice, or out of order:
 *   - of its own words a peer hears each one, from the first;
 *   - of another's, as long as neither has moved, each one from the first that it hears;
 *   - after a move of its own, later ones than before.
 * At quiet moments (crowd_speak) it must also hear everybody in the room, and nobody else. */
#include "server_test.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

enum { MAX_UNDER_WAY = 4, MAX_ID = 1 << 16 };

static struct peer peers[N_PEERS];
static unsigned peer_of[MAX_ID]; /* who last had that id */
static struct heard {
    unsigned id, stay, word; /* of who spoke */
    unsigned own_stay;       /* of who heard it */
} heard[N_PEERS][N_PEERS];

static int port;
static uint64_t n_connections;
static bool coming = true;  /* who is gone comes again */
static bool ending = false; /* the server may cut off anybody */
static bool quiet = false;  /* nobody moves */

static void arrive(struct peer *peer)
{
    peer_connect(peer, port, 0);
    n_connections++;
    if (peer->id >= MAX_ID)
        fail("too many connections for this test");
    peer_of[peer->id] = (unsigned)(peer - peers);
    memset(heard[peer - peers], 0, sizeof heard[0]);
}

void crowd_start(int at)
{
    port = at;
    coming = true;
    ending = quiet = false;
    n_connections = 0;
    memset(heard, 0, sizeof heard);
    for (int i = 0; i < N_PEERS; i++)
        arrive(&peers[i]);
}

uint64_t crowd_connections(void)
{
    return n_connections;
}

/* ---- what comes ------------------------------------------------------------------------------------------ */

static void on_joined(struct peer *peer, int room)
{
    if (peer->n_answered == peer->n_asked || room != peer->asked[peer->n_answered % 64])
        fail("connection %u is in room-%d, unasked", peer->id, room);
    peer->n_answered++;
    peer->room = room;
    peer->n_echo = 0;
}

static void on_said(struct peer *peer, int room, unsigned id, unsigned stay, unsigned word)
{
    peer->n_heard++;
    if (peer->room < 0 || id >= MAX_ID || stay == 0)
        fail("connection %u hears %u in room-%d", peer->id, id, room);
    if (id == peer->id) {
        if (room != peer->room || stay != peer->n_answered || word != peer->n_echo++)
            fail("connection %u hears itself say %u-%u in room-%d", id, stay, word, room);
        return;
    }
    struct peer *speaker = &peers[peer_of[id]];
    if (quiet && (room != peer->room || speaker->id != id || speaker->room != room))
        fail("connection %u is in room-%d, and hears %u in room-%d", peer->id, peer->room, id, room);
    struct heard *last = &heard[peer - peers][speaker - peers];
    if (last->id == id) {
        bool later = stay > last->stay || (stay == last->stay && word > last->word);
        bool next = word == last->word + 1;
        bool neither_moved = stay == last->stay && peer->n_answered == last->own_stay;
        if (!later || (neither_moved && !next))
            fail("connection %u hears %u say %u-%u after %u-%u", peer->id, id, stay, word, last->stay, last->word);
    }
    *last = (struct heard){id, stay, word, peer->n_answered};
}

static void on_line(struct peer *peer, const char *line)
{
    int room;
    unsigned id, stay, word;
    char rest;
    if (sscanf(line, "JOINED room-%d%c", &room, &rest) == 1)
        on_joined(peer, room);
    else if (sscanf(line, "SAID room-%d %u %u %u%c", &room, &id, &stay, &word, &rest) == 4)
        on_said(peer, room, id, stay, word);
    else if (strncmp(line, "ERR unknown command", 19) == 0)
        peer->n_errors++;
    else if (strcmp(line, "BYE") != 0 || !peer->quitting)
        fail("connection %u is told '%s'", peer->id, line);
}

static void on_end(struct peer *peer)
{
    if (!peer->quitting && !ending)
        fail("connection %u is cut off", peer->id);
    peer_close(peer, false);
    peer->room = -1;
    if (coming && !ending)
        arrive(peer);
}

static void pump(int wait_ms)
{
    struct pollfd fds[N_PEERS];
    for (int i = 0; i < N_PEERS; i++)
        fds[i] = (struct pollfd){peers[i].fd, POLLIN, 0};
    if (poll(fds, N_PEERS, wait_ms) <= 0)
        return;
    for (int i = 0; i < N_PEERS; i++) {
        struct peer *peer = &peers[i];
        if (peer->fd < 0 || fds[i].revents == 0)
            continue;
        while (peer_fill(peer)) {
            const char *line;
            while ((line = peer_next(peer)) != NULL)
                on_line(peer, line);
        }
        if (peer->eof)
            on_end(peer);
    }
}

static void pump_until(bool (*done)(const struct peer *peer), const char *what)
{
    int64_t deadline = now_ms() + PATIENCE_MS;
    for (;;) {
        const struct peer *waits = NULL;
        for (int i = 0; i < N_PEERS; i++)
            if (!done(&peers[i]))
                waits = &peers[i];
        if (waits == NULL)
            return;
        if (now_ms() > deadline)
            fail("connection %u waits in vain for %s", waits->id, what);
        pump(100);
    }
}

/* ---- what they do ---------------------------------------------------------------------------------------- */

static void join(struct peer *peer)
{
    int room = (int)random_below(1 + random_below(N_ROOMS)); /* crowded ones, and such as come and go */
    peer->asked[peer->n_asked++ % 64] = room;
    peer->n_said = 0;
    peer_say(peer, "JOIN room-%d\n", room);
}

static void speak(struct peer *peer)
{
    peer_say(peer, "SAY %u %u\n", peer->n_asked, peer->n_said++);
}

static void quit(struct peer *peer)
{
    peer->quitting = true;
    peer_say(peer, "QUIT\n");
}

/* In one of the ways in which that happens. */
static void hang_up(struct peer *peer)
{
    switch (random_below(4)) {
    case 0: /* no more to say, but still listening */
        peer->quitting = true;
        shutdown(peer->fd, SHUT_WR);
        return;
    case 1: /* in the middle of a line */
        peer_say(peer, "SAY half a li");
        peer_close(peer, false);
        break;
    case 2: /* with requests under way */
        peer_say(peer, "ROOMS\nJOIN room-%u\nROOMS\n", random_below(N_ROOMS));
        peer_close(peer, false);
        break;
    default:
        peer_close(peer, true);
    }
    peer->room = -1;
    arrive(peer);
}

void crowd_do_something(unsigned how_often)
{
    while (how_often-- > 0) {
        struct peer *peer = &peers[random_below(N_PEERS)];
        unsigned under_way = peer->n_asked - peer->n_answered;
        unsigned unheard = under_way == 0 ? peer->n_said - peer->n_echo : peer->n_said;
        unsigned act = random_below(100);
        if (peer->quitting || peer->fd < 0)
            continue;
        if (act < 70) {
            if (peer->n_asked > 0 && unheard < MAX_UNDER_WAY)
                speak(peer);
        } else if (act < 90) {
            if (under_way < MAX_UNDER_WAY)
                join(peer);
        } else if (act < 95) {
            quit(peer);
        } else {
            hang_up(peer);
        }
        if (how_often % 8 == 0)
            pump(0);
    }
}

static bool is_settled(const struct peer *peer)
{
    return !peer->quitting && peer->n_asked == peer->n_answered && (peer->room < 0 || peer->n_said == peer->n_echo);
}

static bool has_error(const struct peer *peer)
{
    return peer->n_errors > 0;
}

/* Until all has been heard that was said. Who has heard his own word cannot tell whether the others have; but they will
 * when the next question is answered: a worker takes one after the other. So after the first round all is on its way to
 * everybody, and after the second it is there. */
static void ask_twice(void)
{
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < N_PEERS; i++) {
            peers[i].n_errors = 0;
            peer_say(&peers[i], "WHAT\n");
        }
        pump_until(has_error, "an error");
    }
}

void crowd_settle(void)
{
    pump_until(is_settled, "an answer");
    ask_twice();
}

void crowd_move(bool with_hang_ups)
{
    for (int i = 0; i < N_PEERS; i++) {
        unsigned act = random_below(6);
        if (act < 3)
            join(&peers[i]);
        else if (act == 3)
            quit(&peers[i]);
        else if (act == 4 && with_hang_ups)
            hang_up(&peers[i]);
    }
    crowd_settle();
}

static bool is_gone(const struct peer *peer)
{
    return peer->fd < 0;
}

void crowd_leave(void)
{
    coming = false;
    for (int i = 0; i < N_PEERS; i++)
        quit(&peers[i]);
    pump_until(is_gone, "the end");
}

void crowd_await_end(void)
{
    ending = true;
    pump_until(is_gone, "the end");
}

/* ---- quiet moments --------------------------------------------------------------------------------------- */

void crowd_check_rooms(struct peer *witness, bool at_once)
{
    bool wanted[N_ROOMS + 1] = {false}, rooms[N_ROOMS + 1];
    for (int i = 0; i < N_PEERS; i++)
        if (peers[i].fd >= 0 && peers[i].room >= 0)
            wanted[peers[i].room] = true;
    int64_t deadline = now_ms() + PATIENCE_MS;
    for (;;) {
        peer_ask_rooms(witness, rooms);
        if (memcmp(rooms, wanted, sizeof rooms) == 0)
            return;
        if (at_once || now_ms() > deadline)
            break;
    }
    for (int i = 0; i < N_ROOMS; i++)
        if (rooms[i] != wanted[i])
            fail("room-%d is %s", i, rooms[i] ? "there, without members" : "not there, but has members");
    fail("there is a room that nobody made");
}

static unsigned n_members[N_ROOMS], n_words_each;

static unsigned due(const struct peer *peer)
{
    return peer->room < 0 ? 0 : n_members[peer->room] * n_words_each;
}

static bool has_heard(const struct peer *peer)
{
    return peer->n_heard >= due(peer);
}

void crowd_speak(unsigned n_words)
{
    quiet = true;
    n_words_each = n_words;
    memset(n_members, 0, sizeof n_members);
    for (int i = 0; i < N_PEERS; i++) {
        peers[i].n_heard = 0;
        if (peers[i].room >= 0)
            n_members[peers[i].room]++;
    }
    for (unsigned word = 0; word < n_words; word++)
        for (int i = 0; i < N_PEERS; i++)
            if (peers[i].room >= 0)
                speak(&peers[i]);
    pump_until(has_heard, "what others said");
    ask_twice();
    for (int i = 0; i < N_PEERS; i++)
        if (peers[i].n_heard != due(&peers[i]))
            fail("connection %u hears %u words of %u", peers[i].id, peers[i].n_heard, due(&peers[i]));
    quiet = false;
}
