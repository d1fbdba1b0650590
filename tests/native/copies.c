/*
 * Words that are read while they are written anew: two copies, and one store that says which is in force. Claimed: a
 * reader never meets a copy in the making, and a writer that dies at any moment leaves what was in force.
 */
#include <setjmp.h>
#include <signal.h>

#include "harness.h"

static engine e;
static sigjmp_buf grave;
static _Atomic uint64_t stop;

static int stopped(void) { return atomic_load_explicit(&stop, memory_order_acquire) != 0; }

/* ---- the counts of shards that are gone ------------------------------------------------------------------------------- */

static void die(int number)
{
    (void)number;
    siglongjmp(grave, 1);
}

/*
 * Supervisors that die over it. Generations rise, and not always by one: an inbox that was never told of takes a number,
 * too. Whoever follows retires the same one again.
 */
static void retiring_and_dying(void)
{
    static uint64_t generation, sum, deaths; /* live across the jump */
    uint64_t random = mix(seed + 30);
    e = engine_new(1, 1, 4096, 0);
    struct sigaction action = {.sa_handler = die};
    sigaction(SIGUSR1, &action, NULL);
    for (int i = 0; i < 2000; i++) {
        uint64_t count = 1 + below(&random, 100);
        generation += 1 + below(&random, 3);
        for (int dies = below(&random, 2) == 0; dies >= 0; dies--) {
            sm_shard_view v;
            if (sigsetjmp(grave, 1)) {
                deaths++;
            } else {
                sm_point_arm(dies ? SM_POINT_RETIRE_COUNTED : -1, 1, SIGUSR1);
                sm_retire(e.control, 0, generation, 4 * count, 3 * count, 2 * count, count, 5 * count, 6 * count);
                sum += count;
            }
            sm_view_shard(e.control, 0, &v);
            CHECK(v.retired_accepted == 4 * sum && v.retired_handled == 3 * sum && v.retired_quarantined == 2 * sum &&
                      v.retired_shed == sum && v.retired_skipped == 5 * sum && v.retired_lost == 6 * sum,
                  "generation %llu, death %d: %llu accepted where %llu were: a copy in force was written",
                  (unsigned long long)generation, dies, (unsigned long long)v.retired_accepted,
                  (unsigned long long)(4 * sum));
        }
        sm_retire(e.control, 0, generation, 1, 1, 1, 1, 1, 1);
    }
    CHECK(deaths > 500, "%llu deaths", (unsigned long long)deaths);
    printf("retiring: %llu deaths over 2000 shards\n", (unsigned long long)deaths);
    engine_free(&e);
}

static void *retire(void *argument)
{
    (void)argument;
    for (uint64_t generation = 1; !stopped(); generation++)
        sm_retire(e.control, 0, generation, 4, 3, 2, 1, 5, 6);
    return NULL;
}

static void retiring_under_eyes(double share)
{
    uint64_t looks = 0;
    e = engine_new(1, 1, 4096, 0);
    atomic_store_explicit(&stop, 0, memory_order_relaxed);
    pthread_t supervisor = start(retire, NULL);
    for (int64_t until = sm_now_ns() + (int64_t)(seconds * share * 1e9); sm_now_ns() < until; looks++) {
        sm_shard_view v;
        sm_view_shard(e.control, 0, &v);
        uint64_t n = v.retired_generation;
        CHECK(v.retired_accepted == 4 * n && v.retired_handled == 3 * n && v.retired_quarantined == 2 * n &&
                  v.retired_shed == n && v.retired_skipped == 5 * n && v.retired_lost == 6 * n,
              "generation %llu with %llu accepted, %llu handled, %llu quarantined, %llu shed", (unsigned long long)n,
              (unsigned long long)v.retired_accepted, (unsigned long long)v.retired_handled,
              (unsigned long long)v.retired_quarantined, (unsigned long long)v.retired_shed);
    }
    atomic_store_explicit(&stop, 1, memory_order_release);
    join(supervisor);
    printf("retiring: %llu looks\n", (unsigned long long)looks);
    engine_free(&e);
}

/* ---- texts --------------------------------------------------------------------------------------------------------------- */

/* A text of one letter, which says how long the text is. */
static uint32_t compose(char *text, uint64_t n)
{
    uint32_t letter = (uint32_t)(n % 26), bytes = 7 + letter * 17;
    memset(text, 'a' + (int)letter, bytes);
    return bytes;
}

static void check_text(const char *what, const char *text, uint32_t bytes)
{
    for (uint32_t i = 0; i < bytes; i++)
        CHECK(text[i] == text[0] && bytes == 7 + (uint32_t)(text[0] - 'a') * 17, "%s is torn at %u of %u: %.*s", what,
              i, bytes, (int)bytes, text);
}

static void *speak(void *argument)
{
    char text[512];
    for (uint64_t n = 0; !stopped(); n++) {
        uint32_t bytes = compose(text, n);
        if (argument)
            sm_worker_error(e.control, 0, text, bytes);
        else if (n % 2)
            sm_shard_note(e.control, 0, text, bytes);
        else
            sm_post(e.control, n / 2 % SM_BOARDS, text, bytes);
    }
    return NULL;
}

static void speaking_under_eyes(double share)
{
    static char text[SM_BOARD_BYTES];
    uint64_t looks = 0;
    e = engine_new(1, 1, 4096, 0);
    atomic_store_explicit(&stop, 0, memory_order_relaxed);
    pthread_t speakers[] = {start(speak, NULL), start(speak, &e)};
    for (int64_t until = sm_now_ns() + (int64_t)(seconds * share * 1e9); sm_now_ns() < until; looks++) {
        sm_shard_view v;
        sm_view_shard(e.control, 0, &v);
        check_text("what was said of the shard", v.error, v.error_bytes);
        for (uint32_t i = 0; i < SM_BOARDS; i++)
            check_text("a board", text, sm_view_board(e.control, i, text));
    }
    atomic_store_explicit(&stop, 1, memory_order_release);
    join(speakers[0]);
    join(speakers[1]);
    printf("speaking: %llu looks\n", (unsigned long long)looks);
    engine_free(&e);
}

static void expect_said(const char *what)
{
    sm_shard_view v;
    sm_view_shard(e.control, 0, &v);
    CHECK(v.error_bytes == strlen(what) && memcmp(v.error, what, strlen(what)) == 0, "'%.*s' where '%s' was the later",
          (int)v.error_bytes, v.error, what);
}

static void the_later_is_shown(void)
{
    e = engine_new(1, 1, 4096, 0);
    expect_said("");
    sm_worker_enter(e.control, 0, getpid(), (uint64_t)sm_now_ns());
    sm_worker_error(e.control, 0, "a lane is corrupt", 17);
    expect_said("a lane is corrupt");
    sm_shard_note(e.control, 0, "killed", 6);
    expect_said("killed");
    sm_worker_enter(e.control, 0, getpid(), (uint64_t)sm_now_ns());
    expect_said("");
    sm_shard_note(e.control, 0, "killed again", 12);
    expect_said("killed again");
    sm_worker_error(e.control, 0, "it was not", 10);
    expect_said("it was not");
    engine_free(&e);
}

int main(int argc, char **argv)
{
    begin(argc, argv);
    retiring_and_dying();
    retiring_under_eyes(0.25);
    the_later_is_shown();
    speaking_under_eyes(0.25);
    return 0;
}
