/* A load generator that is lighter than anything it measures: one thread, epoll, HTTP/1.1, answers only counted.
 *
 *     load [options] HOST:PORT...
 *
 *     --path P          what to ask for (/v1/chat/completions)
 *     --body FILE       POST this file; without it: GET
 *     --clients N       so many at once (1); each asks the targets in turn, so that they are measured interleaved
 *     --requests N      so many in all at each target, after the warm-up ...
 *     --seconds S       ... or for so long
 *     --warm-up N       so many at each target that are not counted (0)
 *     --no-keep-alive   a new connection for each request, which its latency includes
 *     --pause-ms MS     after each reply (for one client)
 *
 * Prints JSON: {"elapsed_s", "cpu_s", "targets": [{"errors", "failed_status", "connections", "latencies_us": [...]}]}. An error is
 * any reply but a 200, a broken connection, or a minute without a byte; a kept connection that the server closed
 * meanwhile is none.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_TARGETS = 16, MAX_CLIENTS = 1024, PATIENCE_MS = 60000 };

struct target {
    struct sockaddr_in address;
    char *request;
    size_t request_size;
    long left, warm_up_left, errors, connections;
    int failed_status; /* of the last error; 0: the connection broke */
    double *latencies;
    size_t count, room;
};

struct client {
    int fds[MAX_TARGETS]; /* -1: not connected */
    int target;
    bool is_fresh;        /* the connection was made for this request */
    bool is_warm_up;
    double began;
    size_t sent;
    char head[16384];
    size_t head_size;
    bool has_head, is_chunked, closes, is_active;
    int status;
    long long body_left;  /* bytes; -1: until the end of the connection */
    char line[32];        /* the size of a chunk, as far as it has come */
    int line_size;
    bool is_last_chunk;
};

static struct target targets[MAX_TARGETS];
static struct client clients[MAX_CLIENTS];
static int target_count, client_count = 1, epoll_fd, active;
static bool keep_alive = true;
static double stop_at, pause_s;
static char buffer[1 << 20];

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void fail(const char *what)
{
    fprintf(stderr, "load: %s\n", what);
    exit(2);
}

static void on_end(struct client *c);

static void send_more(struct client *c)
{
    struct target *t = &targets[c->target];
    while (c->sent < t->request_size) {
        ssize_t n = send(c->fds[c->target], t->request + c->sent, t->request_size - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN)
            return; /* EPOLLOUT comes */
        if (n < 0)
            return on_end(c);
        c->sent += n;
    }
}

static void connect_to_target(struct client *c)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connect(fd, (struct sockaddr *)&targets[c->target].address, sizeof targets[c->target].address);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = c - clients};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event);
    c->fds[c->target] = fd;
    c->is_fresh = true;
    targets[c->target].connections++;
}

static void send_request(struct client *c)
{
    c->sent = c->head_size = c->line_size = 0;
    c->has_head = c->is_chunked = c->closes = c->is_last_chunk = false;
    if (c->fds[c->target] < 0)
        connect_to_target(c);
    send_more(c);
}

/* The next target that has requests left, or none: then the client is done. */
static void start_next(struct client *c)
{
    for (int i = 0; i < target_count; i++) {
        c->target = (c->target + 1) % target_count;
        struct target *t = &targets[c->target];
        if ((!t->left && !t->warm_up_left) || (stop_at && now() >= stop_at))
            continue;
        c->is_warm_up = t->warm_up_left > 0;
        *(c->is_warm_up ? &t->warm_up_left : &t->left) -= 1;
        c->is_fresh = false;
        c->began = now();
        send_request(c);
        return;
    }
    c->is_active = false;
    active--;
}

static void disconnect(struct client *c)
{
    if (c->fds[c->target] >= 0)
        close(c->fds[c->target]);
    c->fds[c->target] = -1;
}

static void finish(struct client *c, bool is_fine)
{
    struct target *t = &targets[c->target];
    if (!is_fine || c->status != 200) {
        t->errors++;
        t->failed_status = is_fine ? c->status : 0;
    } else if (!c->is_warm_up) {
        if (t->count == t->room && !(t->latencies = realloc(t->latencies, (t->room = t->room * 2 + 1024) * sizeof(double))))
            fail("no memory");
        t->latencies[t->count++] = now() - c->began;
    }
    if (!is_fine || c->closes || !keep_alive)
        disconnect(c);
    if (pause_s)
        usleep(pause_s * 1e6);
    start_next(c);
}

static void on_end(struct client *c)
{
    bool is_stale = !c->is_fresh && !c->head_size && !c->has_head;
    if (c->has_head && c->body_left < 0)
        return finish(c, true);
    disconnect(c);
    if (is_stale)
        return send_request(c);
    finish(c, false);
}

static const char *header(struct client *c, const char *name)
{
    size_t n = strlen(name);
    for (char *line = c->head; line && *line; line = strstr(line, "\r\n") ? strstr(line, "\r\n") + 2 : NULL)
        if (!strncasecmp(line, name, n) && line[n] == ':')
            return line + n + 1 + strspn(line + n + 1, " ");
    return NULL;
}

/* How many bytes of the data belong to the head. */
static size_t take_head(struct client *c, const char *data, size_t size)
{
    size_t before = c->head_size, take = size;
    if (take > sizeof c->head - 1 - before)
        take = sizeof c->head - 1 - before;
    memcpy(c->head + before, data, take);
    c->head_size += take;
    c->head[c->head_size] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (c->head_size == sizeof c->head - 1)
            fail("a head of more than 16 KiB");
        return take;
    }
    end[2] = 0;
    c->has_head = true;
    c->status = atoi(c->head + strcspn(c->head, " "));
    const char *length = header(c, "content-length"), *coding = header(c, "transfer-encoding");
    const char *connection = header(c, "connection");
    c->is_chunked = coding && !strncasecmp(coding, "chunked", 7);
    c->closes = connection && !strncasecmp(connection, "close", 5);
    c->body_left = c->is_chunked ? 0 : length ? atoll(length) : -1;
    return end + 4 - c->head - before;
}

/* Chunked: the size line, then the data and its line end, until a size of 0 and an empty line. */
static bool take_chunks(struct client *c, const char *data, size_t size)
{
    while (size) {
        if (c->body_left > 0) {
            size_t n = size < (size_t)c->body_left ? size : (size_t)c->body_left;
            c->body_left -= n;
            data += n;
            size -= n;
            continue;
        }
        char byte = *data++;
        size--;
        if (byte == '\n' && c->is_last_chunk) {
            return true;
        } else if (byte == '\n' && c->line_size) {
            c->line[c->line_size] = 0;
            c->line_size = 0;
            c->body_left = strtoll(c->line, NULL, 16);
            c->is_last_chunk = !c->body_left;
            c->body_left += c->body_left ? 2 : 0; /* its line end */
        } else if (byte != '\r' && byte != '\n' && c->line_size < (int)sizeof c->line - 1) {
            c->line[c->line_size++] = byte;
        }
    }
    return false;
}

static bool take_data(struct client *c, const char *data, size_t size)
{
    if (!c->has_head) {
        size_t n = take_head(c, data, size);
        data += n;
        size -= n;
        if (!c->has_head)
            return false;
    }
    if (c->is_chunked)
        return take_chunks(c, data, size);
    if (c->body_left >= 0)
        c->body_left -= (long long)size < c->body_left ? (long long)size : c->body_left;
    return c->body_left == 0;
}

static void on_event(struct client *c)
{
    if (!c->is_active)
        return;
    if (c->sent < targets[c->target].request_size)
        send_more(c);
    while (c->fds[c->target] >= 0) {
        ssize_t n = recv(c->fds[c->target], buffer, sizeof buffer, 0);
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            return on_end(c);
        if (take_data(c, buffer, n))
            return finish(c, true);
    }
}

static void add_target(char *where, const char *path, const char *body_file)
{
    struct target *t = &targets[target_count++];
    char *colon = strrchr(where, ':'), *body = NULL;
    size_t body_size = 0;
    if (!colon || target_count > MAX_TARGETS)
        fail("HOST:PORT, at most 16 of them");
    if (body_file) {
        FILE *f = fopen(body_file, "r");
        if (!f)
            fail("cannot read the body");
        body = malloc(1 << 24);
        body_size = fread(body, 1, 1 << 24, f);
        fclose(f);
    }
    t->request = malloc(body_size + 1000);
    t->request_size = sprintf(t->request, "%s %s HTTP/1.1\r\nHost: %s\r\n%s", body_file ? "POST" : "GET", path, where,
                              keep_alive ? "" : "Connection: close\r\n");
    if (body_file)
        t->request_size += sprintf(t->request + t->request_size, "Content-Type: application/json\r\n"
                                   "Content-Length: %zu\r\n", body_size);
    t->request_size += sprintf(t->request + t->request_size, "\r\n");
    memcpy(t->request + t->request_size, body, body_size);
    t->request_size += body_size;
    *colon = 0;
    t->address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(colon + 1))};
    if (inet_pton(AF_INET, where, &t->address.sin_addr) != 1)
        fail("not an IPv4 address");
}

static void report(double elapsed)
{
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    printf("{\"elapsed_s\": %.6f, \"cpu_s\": %.6f, \"targets\": [", elapsed, cpu);
    for (int i = 0; i < target_count; i++) {
        struct target *t = &targets[i];
        printf("%s{\"errors\": %ld, \"failed_status\": %d, \"connections\": %ld, \"latencies_us\": [", i ? ", " : "",
               t->errors, t->failed_status, t->connections);
        for (size_t k = 0; k < t->count; k++)
            printf("%s%.1f", k ? "," : "", t->latencies[k] * 1e6);
        printf("]}");
    }
    printf("]}\n");
}

int main(int argc, char **argv)
{
    const char *path = "/v1/chat/completions", *body = NULL;
    char *where[MAX_TARGETS];
    double seconds = 0;
    long requests = 0, warm_up = 0;
    int count = 0;
    for (int i = 1; i < argc; i++) {
        char *value = i + 1 < argc ? argv[i + 1] : "";
        if (!strcmp(argv[i], "--no-keep-alive")) {
            keep_alive = false;
            continue;
        }
        if (strncmp(argv[i], "--", 2)) {
            if (count < MAX_TARGETS)
                where[count++] = argv[i];
            continue;
        }
        if (!strcmp(argv[i], "--path")) path = value;
        else if (!strcmp(argv[i], "--body")) body = value;
        else if (!strcmp(argv[i], "--clients")) client_count = atoi(value);
        else if (!strcmp(argv[i], "--requests")) requests = atol(value);
        else if (!strcmp(argv[i], "--seconds")) seconds = atof(value);
        else if (!strcmp(argv[i], "--warm-up")) warm_up = atol(value);
        else if (!strcmp(argv[i], "--pause-ms")) pause_s = atof(value) / 1000;
        else fail("no such option");
        i++;
    }
    if (!count || client_count < 1 || client_count > MAX_CLIENTS || (!requests && !seconds))
        fail("load [options] HOST:PORT...; the options are described at the top of load.c");
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < count; i++) {
        add_target(where[i], path, body);
        targets[i].left = requests ? requests : -1;
        targets[i].warm_up_left = warm_up;
    }
    double began = now();
    stop_at = seconds ? began + seconds : 0;
    active = client_count;
    for (int i = 0; i < client_count; i++) {
        memset(clients[i].fds, -1, sizeof clients[i].fds);
        clients[i].is_active = true;
        clients[i].target = i % target_count;
        start_next(&clients[i]);
    }
    struct epoll_event events[64];
    while (active) {
        int n = epoll_wait(epoll_fd, events, 64, PATIENCE_MS);
        if (!n)
            fail("a minute without a byte");
        for (int i = 0; i < n; i++)
            on_event(&clients[events[i].data.u32]);
    }
    report(now() - began);
}
