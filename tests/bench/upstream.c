/* An OpenAI-shaped upstream that costs next to nothing: one thread, epoll, keep-alive, loopback only.
 *
 *   upstream        listens on a free port, prints it, and ends when its standard input does
 *
 * A POST is answered at once: with one JSON object, or, where the body asks to stream, with server-sent
 * events. "[n=64]" and "[delay=5]" in the last message are the number of chunks and the milliseconds
 * between them; "[cut=20]" closes the connection after so many. The text of a chunk is "T", the 19 digits
 * of CLOCK_MONOTONIC, in ns, when it was sent, a dot and the chunk's number.
 *
 * Where "return_token_ids" asks for them there are token ids, in vLLM's places. A completion whose prompt
 * is token ids goes on where they end, and is not cut: the first two of a prompt's PROMPT_IDS are its n
 * and its delay in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#define MAX_REQUEST (1 << 20)
#define MAX_STREAMS 4096
#define PROMPT_IDS 900          /* tokens of every prompt */
#define FIRST_ID 50000          /* of the answer's tokens, which count up from it */
#define LONGEST_IDS (16 * PROMPT_IDS)
#define LONGEST_DATA (LONGEST_IDS + 2048)
#define SHORTEST_WAIT_NS 100000 /* chunks due closer together than this go out in one turn */

typedef long long ns_t;

struct connection {
    int fd;
    char *in, *out;         /* the request so far; bytes the socket did not take yet */
    size_t in_len, out_len, out_size;
    int chunks, sent;       /* of the stream being answered; chunks is 0 when there is none */
    int before, cut;        /* chunks that its prompt holds already; after how many it breaks off, or 0 */
    int is_chat, wants_usage, wants_ids, closes;
    ns_t delay, due;
};

static const char MODELS[] = "{\"object\":\"list\",\"data\":[{\"id\":\"fake\",\"object\":\"model\"}]}";
static const char ANSWER[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"fake\","
    "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\""
    "A thing is free which exists from the necessity of its own nature alone, and is determined to act by "
    "itself alone; a thing is compelled which is determined by something else to exist and to act in a "
    "certain and determinate manner. You see that I do not place freedom in a free decision, but in a free "
    "necessity; and of that, what men call their will is a part which knows its wishes and not its causes."
    "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":900,"
    "\"completion_tokens\":96,\"total_tokens\":996},\"system_fingerprint\":null}";
#define CHUNK                                                                                       \
    "data: {\"id\":\"%s-bench\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"fake\",\"choices\":" \
    "[{\"index\":0,%s,\"logprobs\":null,\"finish_reason\":%s%s}]%s}\n\n"
#define USAGE                                                                                       \
    "data: {\"id\":\"%s-bench\",\"object\":\"%s\",\"created\":1700000000,\"model\":\"fake\",\"choices\":[]," \
    "\"usage\":{\"prompt_tokens\":%d,\"completion_tokens\":%d,\"total_tokens\":%d}}\n\n"

static int poller;
static struct connection *streams[MAX_STREAMS];
static int stream_count;

static ns_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void watch(struct connection *c, int operation, unsigned events) {
    struct epoll_event wanted = {.events = events, .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &wanted);
}

static void put(struct connection *c, const char *data, size_t len) {
    if (!c->out_len) {
        ssize_t taken = send(c->fd, data, len, MSG_NOSIGNAL);
        if (taken > 0) data += taken, len -= taken;
        if (!len) return;
        watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
    }
    if (c->out_len + len > c->out_size) c->out = realloc(c->out, c->out_size = 2 * (c->out_len + len));
    memcpy(c->out + c->out_len, data, len);
    c->out_len += len;
}

static void flush(struct connection *c) {
    ssize_t taken = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (taken <= 0) return;
    memmove(c->out, c->out + taken, c->out_len -= taken);
    if (!c->out_len) watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void end_stream(struct connection *c) {
    for (int i = 0; i < stream_count; i++)
        if (streams[i] == c) streams[i] = streams[--stream_count];
    c->chunks = 0;
}

static void hang_up(struct connection *c) {
    end_stream(c);
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

static void put_json(struct connection *c, const char *body) {
    char reply[2048];
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s";
    put(c, reply, snprintf(reply, sizeof reply, head, strlen(body), body));
}

static void put_chunk(struct connection *c, const char *data, const char *after) {
    char framed[LONGEST_DATA + 64];
    put(c, framed, snprintf(framed, sizeof framed, "%zx\r\n%s\r\n%s", strlen(data), data, after));
}

static const char *id_of(struct connection *c) { return c->is_chat ? "chatcmpl" : "cmpl"; }

static const char *kind_of(struct connection *c) { return c->is_chat ? "chat.completion.chunk" : "text_completion"; }

/* The ids of the prompt as a field: what this upstream needs to know to go on, and others that say nothing. */
static const char *prompt_ids(struct connection *c) {
    static char field[LONGEST_IDS];
    int len = sprintf(field, ",\"prompt_token_ids\":[%d,%lld", c->chunks, c->delay / 1000);
    for (int i = 2; i < PROMPT_IDS; i++) len += sprintf(field + len, ",%d", 1000 + i);
    sprintf(field + len, "]");
    return field;
}

/* vLLM's first chunk of a chat: the role, and the ids of its prompt. */
static void send_role(struct connection *c) {
    char data[LONGEST_DATA];
    snprintf(data, sizeof data, CHUNK, id_of(c), kind_of(c), "\"delta\":{\"role\":\"assistant\",\"content\":\"\"}", "null",
             "", c->wants_ids ? prompt_ids(c) : "");
    put_chunk(c, data, "");
}

static size_t print_end(struct connection *c, char *data, size_t size) {
    const char *id = id_of(c), *kind = kind_of(c), *said = c->is_chat ? "\"delta\":{}" : "\"text\":\"\"";
    int prompt = PROMPT_IDS + c->before, new = c->chunks - c->before;
    size_t len = snprintf(data, size, CHUNK, id, kind, said, "\"stop\"", c->wants_ids ? ",\"token_ids\":[2]" : "", "");
    if (c->wants_usage) len += snprintf(data + len, size - len, USAGE, id, kind, prompt, new, prompt + new);
    return len + snprintf(data + len, size - len, "data: [DONE]\n\n");
}

static void send_chunk(struct connection *c) {
    char text[64], said[128], ids[64] = "", data[LONGEST_DATA];
    snprintf(text, sizeof text, "T%019lld.%d", now(), c->sent);
    snprintf(said, sizeof said, c->is_chat ? "\"delta\":{\"content\":\"%s\"}" : "\"text\":\"%s\"", text);
    if (c->wants_ids) snprintf(ids, sizeof ids, ",\"token_ids\":[%d]", FIRST_ID + c->sent);
    snprintf(data, sizeof data, CHUNK, id_of(c), kind_of(c), said, "null", ids, "");
    put_chunk(c, data, "");
    c->due += c->delay;
    if (++c->sent == c->cut) c->due = 0; /* broken off in the next turn */
    if (c->sent < c->chunks) return;
    print_end(c, data, sizeof data);
    put_chunk(c, data, "0\r\n\r\n");
    end_stream(c);
}

/* The number after the last place where the body says "[name=". */
static double knob(const char *body, const char *name, double otherwise) {
    for (const char *at = body; (at = strstr(at, name)); at += strlen(name)) otherwise = atof(at + strlen(name));
    return otherwise;
}

static int says(const char *body, const char *spaced, const char *compact) {
    return strstr(body, compact) || strstr(body, spaced);
}

/* What a prompt of token ids says; 0 when it is none, or not one of ours. */
static int go_on_from_ids(struct connection *c, const char *body) {
    const char *at = strstr(body, "\"prompt\"");
    long long ids[2] = {0}, id;
    int count = 0;
    if (!at || *(at += strspn(at + 8, ": ") + 8) != '[') return 0;
    for (char *end; id = strtoll(at + 1, &end, 10), end != at + 1; at = end + strspn(end, " ")) {
        if (count < 2) ids[count] = id;
        count++;
    }
    c->chunks = ids[0];
    c->delay = ids[1] * 1000;
    int before = count - PROMPT_IDS;
    if (before < 0 || before >= c->chunks) return 0;
    c->before = before;
    return 1;
}

static void read_knobs(struct connection *c, const char *body) {
    c->chunks = knob(body, "[n=", 64);
    c->delay = knob(body, "[delay=", 0) * 1e6;
    c->cut = knob(body, "[cut=", 0);
}

static void begin_stream(struct connection *c, const char *body) {
    if (stream_count == MAX_STREAMS) return;
    c->is_chat = strncmp(c->in, "POST /v1/chat/", 14) == 0;
    c->before = c->cut = 0;
    if (c->is_chat || !go_on_from_ids(c, body)) read_knobs(c, body);
    c->wants_usage = says(body, "\"include_usage\": true", "\"include_usage\":true");
    c->wants_ids = says(body, "\"return_token_ids\": true", "\"return_token_ids\":true");
    c->sent = c->before;
    c->due = now();
    streams[stream_count++] = c;
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
                       "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";
    put(c, head, strlen(head));
    if (c->is_chat) send_role(c);
    send_chunk(c);
}

static void answer(struct connection *c, const char *body) {
    if (strncmp(c->in, "POST", 4)) put_json(c, MODELS);
    else if (says(body, "\"stream\": true", "\"stream\":true")) begin_stream(c, body);
    else put_json(c, ANSWER);
}

/* Answer the requests that are complete; -1 when the connection is to be closed. */
static int serve(struct connection *c) {
    while (c->in_len && !c->chunks) {
        c->in[c->in_len] = 0;
        char *end = strstr(c->in, "\r\n\r\n");
        if (!end) return c->in_len == MAX_REQUEST ? -1 : 0;
        *end = 0;
        char *body = end + 4, *declared = strcasestr(c->in, "\ncontent-length:");
        c->closes = strcasestr(c->in, "\nconnection: close") != NULL;
        size_t total = body - c->in + (declared ? strtoul(declared + 16, NULL, 10) : 0);
        *end = '\r';
        if (total > MAX_REQUEST) return -1;
        if (total > c->in_len) return 0;
        char next = c->in[total];
        c->in[total] = 0;
        answer(c, body);
        c->in[total] = next;
        memmove(c->in, c->in + total, c->in_len -= total);
        if (c->closes && !c->chunks) return -1;
    }
    return 0;
}

static int receive(struct connection *c) {
    ssize_t got = recv(c->fd, c->in + c->in_len, MAX_REQUEST - c->in_len, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) return -1;
    c->in_len += got;
    return serve(c);
}

static void welcome(int listener) {
    for (int fd, on = 1; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->in = malloc(MAX_REQUEST + 1);
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

static int listen_somewhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(fd, (void *)&address, size) || listen(fd, 4096)) exit(1);
    getsockname(fd, (void *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static struct timespec *time_to_next_chunk(struct timespec *wait) {
    if (!stream_count) return NULL;
    ns_t soonest = streams[0]->due;
    for (int i = 1; i < stream_count; i++)
        if (streams[i]->due < soonest) soonest = streams[i]->due;
    ns_t left = soonest - now();
    if (left < SHORTEST_WAIT_NS) left = left > 0 ? SHORTEST_WAIT_NS : 0;
    *wait = (struct timespec){left / 1000000000, left % 1000000000};
    return wait;
}

static void send_what_is_due(void) {
    ns_t at = now();
    for (int i = stream_count - 1; i >= 0; i--) {
        struct connection *c = streams[i];
        if (c->due > at) continue;
        if (c->cut && c->sent == c->cut) {
            if (!c->out_len) hang_up(c);
            continue;
        }
        send_chunk(c);
        if (!c->chunks && (c->closes || serve(c) < 0)) hang_up(c);
    }
}

int main(void) {
    struct connection listener = {.fd = listen_somewhere()}, parent = {.fd = 0};
    struct epoll_event events[512];
    struct timespec wait;
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    watch(&listener, EPOLL_CTL_ADD, EPOLLIN);
    watch(&parent, EPOLL_CTL_ADD, EPOLLIN);
    for (;;) {
        int count = epoll_pwait2(poller, events, 512, time_to_next_chunk(&wait), NULL);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (c == &parent) return 0;
            if (c == &listener) {
                welcome(listener.fd);
                continue;
            }
            if (events[i].events & EPOLLOUT && c->out_len) flush(c);
            if (events[i].events & ~EPOLLOUT && receive(c) < 0) hang_up(c);
        }
        send_what_is_due();
    }
}
