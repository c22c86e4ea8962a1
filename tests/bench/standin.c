/* A backend that costs next to nothing: what is measured in front of it is not the backend.
 *
 *     standin --port N [--alias NAME] [--load-ms MS]
 *
 * One thread, epoll, keep-alive, replies made up before the first request. It speaks llama-server's /health (503 for
 * MS milliseconds after the start), /v1/models, POST of anything, and GET /standin: what it saw. A request may carry
 * orders, anywhere in its body:
 *
 *     "reply_kb": 200     a reply of 200 KB instead of 1 KB
 *     "delay_ms": MS      wait before the reply, or before the first event
 *     "chunks": N         with "stream": true, that many events ...
 *     "chunk_ms": MS      ... each so long after the one before
 *
 * As a child of llama-server's router mode (LLAMA_SERVER_ROUTER_PORT is set) it reports and ends the way the router
 * expects of a llama-server.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 4096, ROUND = 64, HEAD_LIMIT = 65536 };

struct text { char *data; size_t size; };

struct connection {
    int fd;                     /* -1: free */
    char *in;
    size_t in_size, in_room;
    const char *out;            /* what is left to write; not owned */
    size_t out_left;
    char small[512];            /* an answer of its own: an event, the counters */
    bool is_busy;               /* a request is under way */
    bool closes;                /* "Connection: close" was asked for */
    double due;                 /* when it goes on; 0: it does not wait */
    const struct text *reply;   /* what it answers then; NULL: a stream */
    int chunks_left;            /* of a stream, -1 when its end is sent */
    double chunk_s;
    bool has_head;
};

static struct connection connections[MAX_FDS];
static struct text replies[2];
static int epoll_fd;
static double ready_at;
static const char *name = "standin"; /* of its model */
static long requests, accepted, dropped, running, most_running;
static int highest_fd;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static struct text make_reply(size_t body_size)
{
    char head[300];
    snprintf(head, sizeof head, "{\"id\":\"chatcmpl-standin\",\"object\":\"chat.completion\",\"created\":1700000000,"
        "\"model\":\"%.64s\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"", name);
    static const char *tail = "\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":12,"
        "\"completion_tokens\":34,\"total_tokens\":46}}";
    static const char *prose = "The quick brown fox jumps over the lazy dog, and says \\\"hello\\\".\\n";
    struct text reply = {malloc(body_size + 200), 0};
    int n = sprintf(reply.data, "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
                    "Content-Length: %zu\r\n\r\n%s", body_size, head);
    char *at = reply.data + n;
    size_t left = body_size - strlen(head) - strlen(tail), piece = strlen(prose);
    for (; left >= piece; left -= piece, at += piece)
        memcpy(at, prose, piece);
    memset(at, '.', left);
    strcpy(at + left, tail);
    reply.size = (at - reply.data) + left + strlen(tail);
    return reply;
}

static void watch(struct connection *c, uint32_t events)
{
    struct epoll_event event = {.events = events | EPOLLRDHUP, .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

static void drop(struct connection *c)
{
    if (c->is_busy) {
        dropped++;
        running--;
    }
    close(c->fd);
    char *in = c->in;
    size_t room = c->in_room;
    memset(c, 0, sizeof *c);
    c->fd = -1;
    c->in = in;
    c->in_room = room;
}

/* The number after "name": in a body, or `otherwise`. */
static double order(const char *body, size_t size, const char *name, double otherwise)
{
    const char *at = memmem(body, size, name, strlen(name));
    if (!at)
        return otherwise;
    at += strlen(name);
    while (at < body + size && strchr("\": ", *at))
        at++;
    return strtod(at, NULL);
}

static bool wants_stream(const char *body, size_t size)
{
    const char *at = memmem(body, size, "\"stream\"", 8);
    if (!at)
        return false;
    for (at += 8; at < body + size && strchr(": ", *at); at++)
        ;
    return *at == 't';
}

static void answer(struct connection *c, const char *data, size_t size)
{
    c->out = data;
    c->out_left = size;
}

static void answer_small(struct connection *c, const char *status, const char *body)
{
    int n = snprintf(c->small, sizeof c->small, "HTTP/1.1 %s\r\nContent-Type: application/json\r\n"
                     "Content-Length: %zu\r\n\r\n%s", status, strlen(body), body);
    answer(c, c->small, n);
}

static void answer_get(struct connection *c, const char *path)
{
    char body[300];
    if (!strncmp(path, "/health", 7) && now() < ready_at) {
        answer_small(c, "503 Service Unavailable", "{\"error\":{\"message\":\"Loading model\",\"code\":503}}");
    } else if (!strncmp(path, "/health", 7)) {
        answer_small(c, "200 OK", "{\"status\":\"ok\"}");
    } else if (!strncmp(path, "/standin", 8)) {
        snprintf(body, sizeof body, "{\"requests\":%ld,\"connections\":%ld,\"dropped\":%ld,\"running\":%ld,"
                 "\"most_running\":%ld}", requests, accepted, dropped, running - 1, most_running);
        answer_small(c, "200 OK", body);
    } else {
        answer_small(c, "200 OK", "{\"object\":\"list\",\"data\":[{\"id\":\"standin\",\"object\":\"model\"}]}");
    }
}

/* The head and the next event of a stream, or its end. */
static void answer_event(struct connection *c)
{
    static const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        "Transfer-Encoding: chunked\r\n\r\n";
    char event[320];
    int n;
    if (c->chunks_left > 0)
        n = sprintf(event, "data: {\"id\":\"s\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"%.64s\","
                    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"word \"},\"finish_reason\":null}]}\n\n", name);
    else
        n = sprintf(event, "data: {\"id\":\"s\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"%.64s\","
                    "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n", name);
    n = sprintf(c->small, "%s%x\r\n%s\r\n%s", c->has_head ? "" : head, n, event, c->chunks_left > 0 ? "" : "0\r\n\r\n");
    c->has_head = true;
    c->chunks_left--;
    answer(c, c->small, n);
}

static void answer_post(struct connection *c, const char *body, size_t size)
{
    double delay_s = order(body, size, "\"delay_ms\"", 0) / 1000;
    c->reply = &replies[order(body, size, "\"reply_kb\"", 1) > 1];
    if (wants_stream(body, size)) {
        c->reply = NULL;
        c->has_head = false;
        c->chunks_left = order(body, size, "\"chunks\"", 8);
        c->chunk_s = order(body, size, "\"chunk_ms\"", 0) / 1000;
        delay_s += 1e-9; /* the events go out from the main loop */
    }
    if (delay_s > 0)
        c->due = now() + delay_s;
    else
        answer(c, c->reply->data, c->reply->size);
}

/* The value of a header, NULL when the request has none. */
static const char *header(const char *head, const char *end, const char *name)
{
    size_t n = strlen(name);
    for (const char *line = head; line < end; line = strstr(line, "\r\n") + 2)
        if (!strncasecmp(line, name, n) && line[n] == ':')
            return line + n + 1;
    return NULL;
}

/* Takes one request off the input; false when it is not complete. */
static bool take_request(struct connection *c)
{
    c->in[c->in_size] = 0;
    char *end = memmem(c->in, c->in_size, "\r\n\r\n", 4);
    if (!end)
        return false;
    const char *length = header(c->in, end + 2, "content-length");
    const char *connection = header(c->in, end + 2, "connection");
    size_t body_size = length ? strtoul(length, NULL, 10) : 0, head_size = end + 4 - c->in;
    if (c->in_size < head_size + body_size)
        return false;
    c->closes = connection && !strncasecmp(connection + strspn(connection, " "), "close", 5);
    c->is_busy = true;
    running++;
    if (!strncmp(c->in, "POST", 4)) {
        requests++;
        most_running = running > most_running ? running : most_running;
        answer_post(c, end + 4, body_size);
    } else {
        answer_get(c, c->in + 4);
    }
    c->in_size -= head_size + body_size;
    memmove(c->in, c->in + head_size + body_size, c->in_size);
    return true;
}

/* Writes what is to be written, and takes the next request once that is done. */
static void go_on(struct connection *c)
{
    for (;;) {
        while (c->out_left) {
            ssize_t n = send(c->fd, c->out, c->out_left, MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN)
                return watch(c, EPOLLIN | EPOLLOUT);
            if (n < 0)
                return drop(c);
            c->out += n;
            c->out_left -= n;
            if (!c->out_left && c->is_busy && !c->reply && c->has_head && c->chunks_left >= 0) {
                c->due = now() + c->chunk_s;
                return;
            }
        }
        if (c->due)
            return;
        if (c->is_busy) {
            c->is_busy = c->has_head = false;
            c->reply = NULL;
            running--;
            if (c->closes)
                return drop(c);
        }
        if (!c->in_size || !take_request(c))
            return;
    }
}

static void on_input(struct connection *c)
{
    for (;;) {
        if (c->in_room - c->in_size < HEAD_LIMIT)
            c->in = realloc(c->in, (c->in_room = c->in_room * 2 + 2 * HEAD_LIMIT));
        size_t room = c->in_room - c->in_size - 1;
        ssize_t n = recv(c->fd, c->in + c->in_size, room, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN))
            return drop(c);
        if (n > 0)
            c->in_size += n;
        if (n < (ssize_t)room)
            break;
    }
    if (!c->is_busy)
        go_on(c);
}

static void on_accept(int listener)
{
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), on = 1;
        if (fd < 0)
            return;
        if (fd >= MAX_FDS) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        connections[fd].fd = fd;
        highest_fd = fd > highest_fd ? fd : highest_fd;
        accepted++;
        struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Wakes who has waited long enough; how long until the next one is due, in ms, or -1. */
static int serve_due(void)
{
    double next = 0, at = now();
    for (struct connection *c = connections; running && c <= connections + highest_fd; c++) {
        if (c->fd < 0 || !c->due)
            continue;
        if (c->due <= at) {
            c->due = 0;
            if (c->reply)
                answer(c, c->reply->data, c->reply->size);
            else
                answer_event(c);
            go_on(c);
        }
        if (c->fd >= 0 && c->due && (!next || c->due < next))
            next = c->due;
    }
    if (!next)
        return -1;
    double left = next - now();
    return left > 0 ? (int)(left * 1000) + 1 : 0;
}

/* The router's pipe: it writes a line when its child is to end, and closes it when it ends itself. */
static void on_router(void)
{
    char line[256];
    ssize_t n = read(STDIN_FILENO, line, sizeof line);
    if (n <= 0 || memmem(line, n, "exit", 4))
        exit(0);
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 1024)) {
        perror("standin");
        exit(1);
    }
    return fd;
}

int main(int argc, char **argv)
{
    int port = 0;
    double load_ms = 0;
    for (int i = 1; i + 1 < argc; i++) { /* a router hands its children options of llama-server's too */
        if (!strcmp(argv[i], "--port"))
            port = atoi(argv[i + 1]);
        if (!strcmp(argv[i], "--alias"))
            name = argv[i + 1];
        if (!strcmp(argv[i], "--load-ms"))
            load_ms = atof(argv[i + 1]);
    }
    ready_at = now() + load_ms / 1000;
    replies[0] = make_reply(1000);
    replies[1] = make_reply(200000);
    for (int i = 0; i < MAX_FDS; i++)
        connections[i].fd = -1;
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    int listener = listen_on(port);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[ROUND];
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event);
    if (getenv("LLAMA_SERVER_ROUTER_PORT")) {
        event.data.fd = STDIN_FILENO;
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, STDIN_FILENO, &event);
        puts("cmd_child_to_router:state:{\"state\":\"ready\",\"payload\":{}}");
        fflush(stdout);
    }
    for (;;) {
        int n = epoll_wait(epoll_fd, events, ROUND, serve_due());
        for (int i = 0; i < n; i++) {
            int fd = events[i].data.fd;
            if (fd == listener)
                on_accept(fd);
            else if (fd == STDIN_FILENO)
                on_router();
            else if (events[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))
                drop(&connections[fd]);
            else if (events[i].events & EPOLLOUT)
                watch(&connections[fd], EPOLLIN), go_on(&connections[fd]);
            else
                on_input(&connections[fd]);
        }
    }
}
