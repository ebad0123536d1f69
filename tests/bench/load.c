/* A closed-loop load client: every connection asks again as soon as it has its answer.
 *
 *   load PORT CONNECTIONS SECONDS KEY BODY_FILE [ANSWERS]
 *
 * Keep-alive, one thread, loopback only. Answers may be JSON or server-sent events. Connections begin
 * spread over WARM_UP_NS, what is counted begins after it. It ends after SECONDS or so many ANSWERS, and
 * prints one line of JSON; times are in µs. "transit" is from the moment a chunk of our upstream names as
 * its own ("T" and 19 digits of CLOCK_MONOTONIC in ns) to its arrival here. Chunks carry their number: a
 * stream is right when each of the "[n=64]" that the body asks for came once and in order. "gap" is the
 * time between the two chunks around the place where the body has the upstream cut it ("[cut=20]").
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define WARM_UP_NS 400000000LL
#define LONGEST_HEAD 8192
#define LONGEST_LINE 4096

typedef long long ns_t;

enum framing { BY_LENGTH, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, LAST_CHUNK };

struct connection {
    int fd;
    ns_t starts_at, asked_at;
    int status, has_head, is_stream, saw_end;           /* of the answer that is being read */
    int in_order, is_disordered;                        /* chunks that came as they should; did one not? */
    ns_t chunk_at;                                      /* when the last one came */
    enum framing framing;
    unsigned long long left;                            /* bytes of the body, or of the chunk */
    char head[LONGEST_HEAD], line[LONGEST_LINE];
    size_t head_len, line_len;
};

struct samples {
    float *us;
    size_t count, size;
};

static struct samples latency, first_chunk, transit, gap;
static unsigned long long answers, chunks, answers_ever, chunks_ever, errors;
static ns_t counted_from, ends_at;
static unsigned long long wanted_answers;
static int poller, port, wanted_chunks, cut_at;
static char *request;
static size_t request_len;

static ns_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int is_counted(ns_t at) { return at > counted_from && at < ends_at; }

static void keep(struct samples *s, ns_t ns) {
    if (s->count == s->size) s->us = realloc(s->us, (s->size = s->size ? 2 * s->size : 65536) * sizeof *s->us);
    s->us[s->count++] = ns / 1e3;
}

static int by_size(const void *a, const void *b) {
    float left = *(const float *)a, right = *(const float *)b;
    return (left > right) - (left < right);
}

static void print_quantiles(const char *name, struct samples *s) {
    if (s->count) qsort(s->us, s->count, sizeof *s->us, by_size);
    for (int percent = 50; percent <= 99; percent += 49)
        if (s->count) printf(",\"%s_p%d\":%.1f", name, percent, s->us[(size_t)(percent / 100.0 * (s->count - 1))]);
        else printf(",\"%s_p%d\":null", name, percent);
}

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct epoll_event wanted = {.events = EPOLLIN, .data.ptr = c};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(c->fd, (void *)&address, sizeof address)) {
        perror("connect");
        exit(1);
    }
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &wanted);
}

static void ask(struct connection *c) {
    c->status = c->has_head = c->is_stream = c->saw_end = c->in_order = c->is_disordered = 0;
    c->head_len = c->line_len = 0;
    c->asked_at = now();
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) errors++;
}

static void read_line(struct connection *c, ns_t at) {
    c->line[c->line_len] = 0;
    c->line_len = 0;
    if (strstr(c->line, "[DONE]")) c->saw_end = 1;
    char *text = strstr(c->line, "\"T");
    if (!text || strspn(text + 2, "0123456789") != 19 || text[21] != '.') return;
    ns_t before = c->chunk_at;
    int number = atoi(text + 22);
    if (number != c->in_order++) c->is_disordered = 1;
    c->chunk_at = at;
    chunks_ever++;
    if (!is_counted(at)) return;
    if (!number) keep(&first_chunk, at - c->asked_at);
    else if (number == cut_at) keep(&gap, at - before);
    chunks++;
    keep(&transit, at - atoll(text + 2));
}

static void read_body(struct connection *c, const char *data, size_t len, ns_t at) {
    if (!c->is_stream) {
        c->saw_end = data[len - 1] == '}';
        return;
    }
    while (len) {
        const char *end = memchr(data, '\n', len);
        size_t piece = end ? (size_t)(end - data) : len, room = LONGEST_LINE - 1 - c->line_len;
        memcpy(c->line + c->line_len, data, piece < room ? piece : room);
        c->line_len += piece < room ? piece : room;
        if (!end) return;
        read_line(c, at);
        data += piece + 1;
        len -= piece + 1;
    }
}

/* Take the head out of the bytes; how many of them it used, or all when it is not complete. */
static size_t read_head(struct connection *c, const char *data, size_t len) {
    size_t before = c->head_len, room = LONGEST_HEAD - 1 - before;
    memcpy(c->head + before, data, len < room ? len : room);
    c->head_len += len < room ? len : room;
    c->head[c->head_len] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return len;
    *end = 0;
    char *declared = strcasestr(c->head, "\ncontent-length:");
    c->has_head = 1;
    c->status = atoi(c->head + strlen("HTTP/1.1 "));
    c->is_stream = strcasestr(c->head, "text/event-stream") != NULL;
    c->framing = strcasestr(c->head, "\ntransfer-encoding: chunked") ? CHUNK_SIZE : BY_LENGTH;
    c->left = declared && c->framing == BY_LENGTH ? strtoull(declared + 16, NULL, 10) : 0;
    return end + 4 - c->head - before;
}

static void read_size_digit(struct connection *c, char digit) {
    if (digit == '\n') c->framing = c->left ? CHUNK_DATA : LAST_CHUNK;
    else if (digit >= '0' && digit <= '9') c->left = 16 * c->left + digit - '0';
    else if ((digit | 32) >= 'a' && (digit | 32) <= 'f') c->left = 16 * c->left + (digit | 32) - 'a' + 10;
}

/* Take bytes of an answer; 1 when it is complete. */
static int feed(struct connection *c, const char *data, size_t len, ns_t at) {
    if (!c->has_head) {
        size_t used = read_head(c, data, len);
        data += used, len -= used;
        if (c->has_head && c->framing == BY_LENGTH && !c->left) return 1;
    }
    while (len) {
        size_t used = 1;
        if (c->framing == BY_LENGTH || c->framing == CHUNK_DATA) {
            used = len < c->left ? len : c->left;
            read_body(c, data, used, at);
            c->left -= used;
            if (!c->left && c->framing == BY_LENGTH) return 1;
            if (!c->left) c->framing = CHUNK_END;
        } else if (c->framing == CHUNK_SIZE) {
            read_size_digit(c, *data);
        } else if (*data == '\n') {
            if (c->framing == LAST_CHUNK) return 1;
            c->framing = CHUNK_SIZE;
        }
        data += used, len -= used;
    }
    return 0;
}

static int is_right(struct connection *c) {
    if (c->status != 200 || !c->saw_end) return 0;
    return !c->is_stream || (c->in_order == wanted_chunks && !c->is_disordered);
}

static void finish(struct connection *c, ns_t at) {
    if (!is_right(c)) {
        errors++;
    } else {
        answers_ever++;
        if (is_counted(at)) {
            answers++;
            keep(&latency, at - c->asked_at);
        }
    }
    ask(c);
}

static void receive(struct connection *c) {
    static char buffer[1 << 18];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    ns_t at = now();
    if (got > 0) {
        if (feed(c, buffer, got, at)) finish(c, at);
        return;
    }
    if (c->head_len) errors++; /* an idle connection may be closed: then ask on a new one */
    close(c->fd);
    open_connection(c);
    ask(c);
}

/* The number after the last place where the body says "[name=". */
static int knob(const char *body, const char *name, int otherwise) {
    for (const char *at = body; (at = strstr(at, name)); at += strlen(name)) otherwise = atoi(at + strlen(name));
    return otherwise;
}

static void read_request(const char *key, const char *path) {
    static char body[1 << 18];
    FILE *file = fopen(path, "rb");
    size_t len = file ? fread(body, 1, sizeof body - 1, file) : 0;
    if (!len) exit(1);
    wanted_chunks = knob(body, "[n=", 64);
    cut_at = knob(body, "[cut=", 0);
    request = malloc(len + 1024);
    request_len = sprintf(request,
                          "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAuthorization: Bearer %s\r\n"
                          "Content-Type: application/json\r\nAccept: */*\r\nContent-Length: %zu\r\n\r\n",
                          port, key, len);
    memcpy(request + request_len, body, len);
    request_len += len;
}

static void report(int connections) {
    double seconds = (ends_at - counted_from) / 1e9, lasted = seconds + WARM_UP_NS / 1e9;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"connections\":%d,\"requests_per_s\":%.1f,\"chunks_per_s\":%.1f", connections, answers / seconds,
           chunks / seconds);
    print_quantiles("latency", &latency);
    print_quantiles("first_chunk", &first_chunk);
    print_quantiles("transit", &transit);
    print_quantiles("gap", &gap);
    printf(",\"gaps\":%zu,\"answers_ever\":%llu,\"chunks_ever\":%llu,\"errors\":%llu,\"cpu\":%.3f}\n", gap.count,
           answers_ever, chunks_ever, errors, cpu_s / lasted);
}

int main(int argc, char **argv) {
    if (argc != 6 && argc != 7) return 2;
    port = atoi(argv[1]);
    int connections = atoi(argv[2]), waiting = connections;
    wanted_answers = argc == 7 ? strtoull(argv[6], NULL, 10) : 0;
    read_request(argv[4], argv[5]);
    poller = epoll_create1(0);
    struct connection *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) open_connection(&all[i]);
    ns_t began = now();
    counted_from = began + WARM_UP_NS;
    ends_at = counted_from + (ns_t)(atof(argv[3]) * 1e9);
    for (int i = 0; i < connections; i++) all[i].starts_at = began + WARM_UP_NS * i / connections;
    for (ns_t at; (at = now()) < ends_at;) {
        struct epoll_event events[512];
        for (; waiting && all[connections - waiting].starts_at <= at; waiting--) ask(&all[connections - waiting]);
        int count = epoll_wait(poller, events, 512, waiting ? 1 : 50);
        for (int i = 0; i < count; i++) receive(events[i].data.ptr);
        if (wanted_answers && answers_ever >= wanted_answers) ends_at = now();
    }
    report(connections);
}
