/* test_full.c: a server that holds as many clients as it may, all of whom have proved that they know the key. */
#define _GNU_SOURCE

#include "few_clients.h"

#include "ff_util.h"
#include "serving.h"

#define A_WHILE_MS 400

static int end_as_told(const struct ff_request *request)
{
    return request->payload[0];
}

static const struct service frugal = {.child = end_as_told, .conclude = check_little_cpu_used};

static void start_full_server(struct serving *serving, int socks[FF_MAX_CLIENTS])
{
    start_server(serving, &frugal);
    for (int i = 0; i < FF_MAX_CLIENTS; i++)
        socks[i] = connect_client(serving);
}

static bool has_challenge_within(int sock, int timeout_ms)
{
    struct pollfd polled = {.fd = sock, .events = POLLIN};

    return poll(&polled, 1, timeout_ms) > 0;
}

static void check_served(int sock, uint32_t id)
{
    start_child(sock, id, 0, "\x05", 1, NULL, 0);
    check_exit(sock, id, 5);
}

/* It waits in the backlog, however long it has been there: nobody is a stranger who could make room. */
static void test_one_more_waits(void)
{
    struct serving serving;
    struct ff_status status;
    int socks[FF_MAX_CLIENTS];
    double begin;
    int page, more;

    start_full_server(&serving, socks);
    page = ask_status(socks[0]);
    begin = ff_seconds_now();
    more = connect_stranger(&serving.address);
    CHECK(!has_challenge_within(more, A_WHILE_MS));
    check_served(socks[FF_MAX_CLIENTS - 1], 1);
    status = look(page);
    CHECK_INT(status.clients, FF_MAX_CLIENTS);
    CHECK_INT(status.refused[FF_REFUSED_CLIENTS], 0);
    CHECK(status.accept_failures[EUSERS] > 0);
    CHECK((double)status.accept_failures[EUSERS] <= 1 + 1e3 * (ff_seconds_now() - begin) / FF_RETRY_MS);
    CHECK(!has_challenge_within(more, 0));
    close_all(socks, FF_MAX_CLIENTS);
    close_all((int[]){page, more}, 2);
    stop_server(&serving);
}

/* Whoever has waited comes in as soon as another one leaves, and is served as all others. */
static void test_one_more_comes_in(void)
{
    struct serving serving;
    int socks[FF_MAX_CLIENTS];
    int more[2];

    start_full_server(&serving, socks);
    for (int i = 0; i < 2; i++)
        more[i] = connect_stranger(&serving.address);
    CHECK(!has_challenge_within(more[0], A_WHILE_MS));
    for (int i = 0; i < 2; i++) {
        CHECK_INT(close(socks[i]), 0);
        authenticate(more[i]);
        socks[i] = more[i];
        check_served(socks[i], 1);
    }
    close_all(socks, FF_MAX_CLIENTS);
    stop_server(&serving);
}

int main(void)
{
    RUN(test_one_more_waits);
    RUN(test_one_more_comes_in);
    return 0;
}
