/* One connection, as a caller of the server has it. */
#include "server_test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void peer_connect(struct peer *peer, int port, int receive_buffer)
{
    *peer = (struct peer){.room = -1};
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((uint16_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    if (receive_buffer > 0)
        setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    if (peer->fd < 0 || connect(peer->fd, (struct sockaddr *)&address, sizeof address) != 0)
        fail("cannot connect: %s", strerror(errno));
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    fcntl(peer->fd, F_SETFL, O_NONBLOCK);
    const char *line = peer_line(peer);
    if (line == NULL || sscanf(line, "WELCOME %u", &peer->id) != 1)
        fail("no welcome but '%s'", line == NULL ? "the end" : line);
}

void peer_close(struct peer *peer, bool reset)
{
    if (reset)
        setsockopt(peer->fd, SOL_SOCKET, SO_LINGER, &(struct linger){1, 0}, sizeof(struct linger));
    close(peer->fd);
    peer->fd = -1;
}

static void wait_for(const struct peer *peer, short events, int64_t deadline)
{
    struct pollfd fd = {peer->fd, events, 0};
    int64_t left = deadline - now_ms();
    if (left <= 0 || poll(&fd, 1, (int)left) == 0)
        fail("connection %u waits in vain for %s", peer->id, events == POLLIN ? "a line" : "the server to read");
}

void peer_send(struct peer *peer, const char *data, size_t size)
{
    int64_t deadline = now_ms() + PATIENCE_MS;
    while (size > 0) {
        ssize_t sent = send(peer->fd, data, size, MSG_NOSIGNAL);
        if (sent >= 0) {
            data += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            wait_for(peer, POLLOUT, deadline);
        } else {
            return; /* cut off: what is read tells */
        }
    }
}

void peer_say(struct peer *peer, const char *format, ...)
{
    char line[1024];
    va_list args;
    va_start(args, format);
    int size = vsnprintf(line, sizeof line, format, args);
    va_end(args);
    peer_send(peer, line, (size_t)size);
}

bool peer_fill(struct peer *peer)
{
    if (peer->eof)
        return false;
    memmove(peer->in, peer->in + peer->in_at, peer->n_in - peer->in_at);
    peer->n_in -= peer->in_at;
    peer->in_at = 0;
    if (peer->n_in == sizeof peer->in)
        fail("connection %u is sent a very long line", peer->id);
    ssize_t got = recv(peer->fd, peer->in + peer->n_in, sizeof peer->in - peer->n_in, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (got <= 0) {
        peer->eof = true;
        peer->reset = got < 0;
    } else {
        peer->n_in += (size_t)got;
    }
    return true;
}

const char *peer_next(struct peer *peer)
{
    char *line = peer->in + peer->in_at;
    char *end = memchr(line, '\n', peer->n_in - peer->in_at);
    if (end == NULL)
        return NULL;
    *end = '\0';
    peer->in_at = (size_t)(end + 1 - peer->in);
    return line;
}

const char *peer_line(struct peer *peer)
{
    int64_t deadline = now_ms() + PATIENCE_MS;
    for (;;) {
        const char *line = peer_next(peer);
        if (line != NULL || peer->eof)
            return line;
        if (!peer_fill(peer))
            wait_for(peer, POLLIN, deadline);
    }
}

void peer_expect(struct peer *peer, const char *line)
{
    const char *got = peer_line(peer);
    if (got == NULL || strcmp(got, line) != 0)
        fail("connection %u is told '%s' instead of '%s'", peer->id, got == NULL ? "the end" : got, line);
}

void peer_expect_end(struct peer *peer)
{
    const char *got = peer_line(peer);
    if (got != NULL)
        fail("connection %u is told '%s' instead of being closed", peer->id, got);
    if (peer->reset)
        fail("connection %u is reset instead of being closed", peer->id);
    peer_close(peer, false);
}

void peer_ask_rooms(struct peer *peer, bool *rooms)
{
    for (int i = 0; i <= N_ROOMS; i++)
        rooms[i] = false;
    peer_say(peer, "ROOMS\n");
    unsigned n = 0, shown, all;
    const char *line;
    for (; (line = peer_line(peer)) != NULL && strncmp(line, "ROOM ", 5) == 0; n++) {
        int number;
        char rest;
        bool known = sscanf(line, "ROOM room-%d%c", &number, &rest) == 1 && number >= 0 && number < N_ROOMS;
        bool *flag = &rooms[known ? number : N_ROOMS];
        if (known && *flag)
            fail("ROOMS has room-%d twice", number);
        *flag = true;
    }
    if (line == NULL || sscanf(line, "END %u of %u", &shown, &all) != 2 || shown != n || all != n)
        fail("ROOMS has %u rooms and ends with '%s'", n, line == NULL ? "the end" : line);
}
