/* Tests of the count word: every operation on every state of the table in word.h, verdict and new bits. */
#include "race.h"

#include <criterion/criterion.h>
#include <inttypes.h>

#include <weakref/detail/word.h>

#define S WR_WORD_STRONG
#define W WR_WORD_WEAK
#define C WR_WORD_CLOSED
#define D WR_WORD_DEFERRED

/* The first saturated strong half and the middle; the same for the weak half. */
#define S_FULL (UINT64_C(1) << 28)
#define S_MIDDLE (UINT64_C(3) << 27)
#define S_MOST ((UINT64_C(1) << 29) - 1)
#define W_FULL WR_WORD_WEAK_SATURATED
#define W_MIDDLE WR_WORD_WEAK_MIDDLE
#define W_MOST WR_WORD_WEAK_MASK

typedef enum wr_word_verdict operation(wr_word *w);

/* A release that has just taken 1 to 0 settles later: what others did between is in the word by then. */
static enum wr_word_verdict settle_release_of_last(wr_word *w)
{
    return wr_word_release_settle(w, S | (2 * W));
}

static enum wr_word_verdict settle_release_of_last_deferred(wr_word *w)
{
    return wr_word_release_settle(w, S | W | D);
}

static const struct row {
    const char *state;
    operation *run;
    const char *name;
    uint64_t before;
    enum wr_word_verdict verdict;
    uint64_t after;
} rows[] = {
#define ROW(state, op, before, verdict, after)                      \
    {                                                               \
#state, wr_word_##op, #op, before, WR_WORD_##verdict, after \
    }

    /* retain */
    ROW(LIVE > 1, retain, 2 * S | W, OK, 3 * S | W),
    ROW(LIVE = 1, retain, S | W, OK, 2 * S | W),
    ROW(LIVE = 1 deferred, retain, S | W | D, OK, 2 * S | W | D),
    ROW(ZERO, retain, W, UNDERFLOW, S | W),
    ROW(ZERO with handles, retain, 5 * W, UNDERFLOW, S | (5 * W)),
    ROW(DEAD, retain, C | W, IS_DEAD, C | S | W),
    ROW(DEAD with strays, retain, C | (S_MOST * S) | W, IS_DEAD, C | W),
    ROW(LIVE below full, retain, (S_FULL - 1) * S | W, OK, S_FULL *S | W),
    ROW(full, retain, S_FULL *S | W, SATURATED, S_MIDDLE *S | W),
    ROW(saturated, retain, S_MIDDLE *S | W, SATURATED, S_MIDDLE *S | W),
    ROW(saturated deferred, retain, S_MIDDLE *S | (7 * W) | D, SATURATED, S_MIDDLE *S | (7 * W) | D),
    ROW(near the top, retain, (S_MOST - 1) * S | W, SATURATED, S_MIDDLE *S | W),

    /* upgrade */
    ROW(LIVE > 1, upgrade, 2 * S | (2 * W), OK, 3 * S | (2 * W)),
    ROW(LIVE = 1, upgrade, S | (2 * W), OK, 2 * S | (2 * W)),
    ROW(ZERO, upgrade, 2 * W, OK, S | (3 * W)),
    ROW(ZERO deferred, upgrade, 2 * W | D, OK, S | (3 * W) | D),
    ROW(DEAD, upgrade, C | (2 * W), DEAD, C | S | (2 * W)),
    ROW(DEAD with strays, upgrade, C | (S_MOST * S) | (2 * W), DEAD, C | (2 * W)),
    ROW(DEAD near full, upgrade, C | ((S_FULL - 1) * S) | (2 * W), DEAD, C | (S_FULL * S) | (2 * W)),
    ROW(LIVE below full, upgrade, (S_FULL - 1) * S | (2 * W), OK, S_FULL *S | (2 * W)),
    ROW(full, upgrade, S_FULL *S | (2 * W), SATURATED, S_MIDDLE *S | (2 * W)),
    ROW(near the top, upgrade, (S_MOST - 1) * S | (2 * W), SATURATED, S_MIDDLE *S | (2 * W)),
    ROW(ZERO weak below full, upgrade, W_FULL - 1, OK, S | W_FULL),
    ROW(ZERO weak full, upgrade, W_FULL, SATURATED, S | W_MIDDLE),
    ROW(ZERO weak near the top, upgrade, W_MOST - 1, SATURATED, S | W_MIDDLE),

    /* release */
    ROW(LIVE > 1, release, 2 * S | W, OK, S | W),
    ROW(LIVE > 1, release, 3 * S | (4 * W) | D, OK, 2 * S | (4 * W) | D),
    ROW(LIVE = 1 alone, release, S | W, DIES_ALONE, C | W),
    ROW(LIVE = 1 with handles, release, S | (2 * W), DIES, C | (2 * W)),
    ROW(LIVE = 1 deferred, release, S | W | D, DIES, C | D | W),
    ROW(LIVE = 1 weak saturated, release, S | W_MIDDLE, DIES, C | W_MIDDLE),
    ROW(DEAD, release, C | S | W, IS_DEAD, C | W),
    ROW(DEAD, release, C | W, IS_DEAD, C | W | WR_WORD_STRONG_MASK),
    ROW(ZERO, release, W, UNDERFLOW, W | WR_WORD_STRONG_MASK),
    ROW(full, release, S_FULL *S | W, OK, (S_FULL - 1) * S | W),
    ROW(above full, release, (S_FULL + 1) * S | W, SATURATED, S_MIDDLE *S | W),
    ROW(saturated, release, S_MIDDLE *S | W, SATURATED, S_MIDDLE *S | W),
    ROW(near the top, release, S_MOST *S | W, SATURATED, S_MIDDLE *S | W),

    /* weak retain, downgrade */
    ROW(LIVE > 1, weak_retain, 2 * S | W, OK, 2 * S | (2 * W)),
    ROW(LIVE = 1, weak_retain, S | W, OK, S | (2 * W)),
    ROW(ZERO, weak_retain, 2 * W, OK, 3 * W),
    ROW(DEAD, weak_retain, C | W, OK, C | (2 * W)),
    ROW(FREE, weak_retain, C, UNDERFLOW, C | W),
    ROW(LIVE below full, weak_retain, S | (W_FULL - 1), OK, S | W_FULL),
    ROW(full, weak_retain, S | W_FULL, SATURATED, S | W_MIDDLE),
    ROW(saturated, weak_retain, S | W_MIDDLE, SATURATED, S | W_MIDDLE),
    ROW(near the top, weak_retain, S | (W_MOST - 1), SATURATED, S | W_MIDDLE),
    ROW(DEAD saturated, weak_retain, C | W_MIDDLE, SATURATED, C | W_MIDDLE),

    /* weak release */
    ROW(LIVE > 1, weak_release, 2 * S | (2 * W), OK, 2 * S | W),
    ROW(LIVE = 1, weak_release, S | (3 * W), OK, S | (2 * W)),
    ROW(LIVE with no handle, weak_release, S | W, UNDERFLOW, S),
    ROW(ZERO, weak_release, 2 * W, OK, W),
    ROW(DEAD, weak_release, C | (2 * W), OK, C | W),
    ROW(DEAD last, weak_release, C | W, FREE, C),
    ROW(DEAD last with strays, weak_release, C | (9 * S) | W, FREE, C | (9 * S)),
    ROW(DEAD last deferred, weak_release, C | D | W, FREE, C | D),
    ROW(FREE, weak_release, C, UNDERFLOW, W_MOST),
    ROW(full, weak_release, S | W_FULL, OK, S | (W_FULL - 1)),
    ROW(above full, weak_release, S | (W_FULL + 1), SATURATED, S | W_MIDDLE),
    ROW(saturated, weak_release, S | W_MIDDLE, SATURATED, S | W_MIDDLE),
    ROW(DEAD saturated, weak_release, C | W_MIDDLE, SATURATED, C | W_MIDDLE),
    ROW(near the top, weak_release, S | W_MOST, SATURATED, S | W_MIDDLE),

    /* retain_live */
    ROW(LIVE > 1, retain_live, 2 * S | W | D, OK, 3 * S | W | D),
    ROW(LIVE = 1, retain_live, S | W | D, OK, 2 * S | W | D),
    ROW(ZERO, retain_live, W | D, OK, S | (2 * W) | D),
    ROW(DEAD, retain_live, C | W | D, DEAD, C | S | W | D),
    ROW(DEAD without a token, retain_live, C | D, FREE, C | S | D),
    ROW(LIVE below full, retain_live, (S_FULL - 1) * S | W | D, OK, S_FULL *S | W | D),
    ROW(full, retain_live, S_FULL *S | W | D, SATURATED, S_MIDDLE *S | W | D),
    ROW(near the top, retain_live, (S_MOST - 1) * S | W | D, SATURATED, S_MIDDLE *S | W | D),
    ROW(DEAD weak saturated, retain_live, C | D | W_MIDDLE, SATURATED, C | S | D | W_MIDDLE),
    ROW(LIVE weak saturated, retain_live, S | D | W_MIDDLE, OK, 2 * S | D | W_MIDDLE),

    /* forget: the end of a death */
    ROW(DEAD alone, forget, C | W, FREE, C | W),
    ROW(DEAD alone with strays, forget, C | (3 * S) | W, FREE, C | (3 * S)),
    ROW(DEAD with a handle made by destroy, forget, C | (2 * W), OK, C | W),
    ROW(DEAD deferred, forget, C | D | W, FREE, C | D),

#undef ROW
#define ROW(state, op, before, verdict, after)            \
    {                                                     \
#state, op, #op, before, WR_WORD_##verdict, after \
    }
    /* The second half of a release that brought the zero: what it finds when it comes to it. */
    ROW(still ZERO, settle_release_of_last, 2 * W, DIES, C | (2 * W)),
    ROW(still ZERO and the handle went, settle_release_of_last, W, DIES, C | W),
    ROW(still ZERO and more handles, settle_release_of_last, 9 * W, DIES, C | (9 * W)),
    ROW(upgraded meanwhile, settle_release_of_last, S | (3 * W), OK, S | (2 * W)),
    ROW(closed by another, settle_release_of_last, C | (2 * W), OK, C | W),
    ROW(closed by another and all handles went, settle_release_of_last, C | W, FREE, C),
    ROW(upgraded into saturation, settle_release_of_last, S_MIDDLE *S | (3 * W), OK, S_MIDDLE *S | (2 * W)),
    ROW(still ZERO, settle_release_of_last_deferred, W | D, DIES, C | W | D),
    ROW(kept live meanwhile, settle_release_of_last_deferred, S | (2 * W) | D, OK, S | W | D),
#undef ROW
};

Test(word, every_operation_on_every_state_gives_the_verdict_and_the_bits_of_the_table)
{
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const struct row *row = &rows[i];
        wr_word w;
        wr_atomic_init(&w.bits, row->before);
        enum wr_word_verdict verdict = row->run(&w);
        cr_expect_eq(verdict, row->verdict, "%s of %s (%#" PRIx64 "): verdict %d, not %d", row->name, row->state,
                     row->before, (int)verdict, (int)row->verdict);
        cr_expect_eq(w.bits.v, row->after, "%s of %s (%#" PRIx64 "): %#" PRIx64 ", not %#" PRIx64, row->name,
                     row->state, row->before, w.bits.v, row->after);
    }
}

Test(word, new_word_has_one_strong_reference_and_its_token)
{
    wr_word w;
    wr_word_init(&w, false);
    cr_assert_eq(w.bits.v, S | W);
    wr_word_init(&w, true);
    cr_assert_eq(w.bits.v, S | W | D);
    cr_assert_eq(wr_word_peek(&w), S | W | D);
}

Test(word, fields_lie_where_the_layout_says)
{
    cr_assert_eq(WR_WORD_STRONG, UINT64_C(1) << 35);
    cr_assert_eq(WR_WORD_DEFERRED, UINT64_C(1) << 33);
    cr_assert_eq(WR_WORD_CLOSED, UINT64_C(1) << 32);
    cr_assert_eq(WR_WORD_STRONG_MIDDLE, S_MIDDLE * S);
    cr_assert_eq(WR_WORD_WEAK_MIDDLE, UINT64_C(3) << 30);
    cr_assert_eq(wr_word_strong(5 * S | (7 * W) | D), 5);
    cr_assert_eq(wr_word_weak(5 * S | (7 * W) | D), 7);
    cr_assert_eq(wr_word_strong(C | (5 * S) | W), 0, "strays of a dead word are not counted");
    cr_assert_eq(wr_word_strong(S_MOST * S), S_MOST);
    cr_assert_eq(wr_word_weak(W_MOST), W_MOST);
}

Test(word, plain_is_exactly_not_closed_not_saturated_and_enough)
{
    const uint64_t strong[] = {0, 1, 2, 3, 1000, S_FULL - 1, S_FULL, S_FULL + 1, S_MIDDLE, S_MOST};
    const uint64_t weak[] = {0, 1, 2, W_FULL - 1, W_FULL, W_MIDDLE, W_MOST};
    for (size_t s = 0; s < sizeof strong / sizeof *strong; s++)
        for (size_t w = 0; w < sizeof weak / sizeof *weak; w++)
            for (unsigned flags = 0; flags < 4; flags++)
                for (int least = 1; least <= 2; least++) {
                    uint64_t bits = strong[s] * S | weak[w] | (flags & 1 ? C : 0) | (flags & 2 ? D : 0);
                    bool plain = !(flags & 1) && strong[s] >= (uint64_t)least && strong[s] < S_FULL;
                    cr_expect_eq(wr_word_is_plain(bits, least), plain, "%#" PRIx64 " %d", bits, least);
                    bool weak_plain = weak[w] >= (uint64_t)least && weak[w] < W_FULL;
                    cr_expect_eq(wr_word_weak_is_plain(bits, least), weak_plain, "%#" PRIx64 " %d", bits, least);
                }
}

Test(word, saturated_halves_come_back_to_their_middle_from_both_sides_and_never_wrap)
{
    wr_word w;
    wr_atomic_init(&w.bits, S_MIDDLE * S | W_MIDDLE);
    for (unsigned i = 0; i < 100000; i++) {
        cr_assert_eq(wr_word_retain(&w), WR_WORD_SATURATED);
        cr_assert_eq(wr_word_weak_retain(&w), WR_WORD_SATURATED);
        cr_assert_eq(wr_word_upgrade(&w), WR_WORD_SATURATED);
    }
    cr_assert_eq(w.bits.v, S_MIDDLE * S | W_MIDDLE);
    for (unsigned i = 0; i < 100000; i++) {
        cr_assert_eq(wr_word_release(&w), WR_WORD_SATURATED);
        cr_assert_eq(wr_word_weak_release(&w), WR_WORD_SATURATED);
    }
    cr_assert_eq(w.bits.v, S_MIDDLE * S | W_MIDDLE);
}

/* ---- races: who closes, who comes too late ----------------------------------------------------------------- */

static struct {
    wr_word word;
    enum wr_word_verdict release, upgrade, weak;
    enum wr_word_verdict release_again;
} duel;

static void prepare(void *ctx)
{
    (void)ctx;
    wr_atomic_init(&duel.word.bits, S | (2 * W)); /* an owner and a holder of a handle */
    duel.release_again = WR_WORD_OK;
}

/* A release, and the end of the death that it may be. */
static enum wr_word_verdict release_and_forget(wr_word *w)
{
    enum wr_word_verdict verdict = wr_word_release(w);
    if (verdict != WR_WORD_DIES && verdict != WR_WORD_DIES_ALONE)
        return verdict;
    return wr_word_forget(w) == WR_WORD_FREE ? WR_WORD_FREE : WR_WORD_DIES;
}

static void owner(void *ctx)
{
    (void)ctx;
    duel.release = release_and_forget(&duel.word);
}

static void holder(void *ctx)
{
    (void)ctx;
    duel.upgrade = wr_word_upgrade(&duel.word);
    for (unsigned i = 0; i < 64; i++)
        race_pause(); /* time for the owner to go first */
    if (duel.upgrade == WR_WORD_OK)
        duel.release_again = release_and_forget(&duel.word);
    duel.weak = wr_word_weak_release(&duel.word);
}

static unsigned judge(void *ctx)
{
    (void)ctx;
    bool by_owner = duel.release == WR_WORD_DIES || duel.release == WR_WORD_FREE;
    bool by_holder = duel.release_again == WR_WORD_DIES || duel.release_again == WR_WORD_FREE;
    unsigned frees = 0;
    frees += duel.release == WR_WORD_FREE;
    frees += duel.release_again == WR_WORD_FREE;
    frees += duel.weak == WR_WORD_FREE;
    cr_assert_eq(frees, 1, "freed %u times: %d %d %d", frees, (int)duel.release, (int)duel.release_again,
                 (int)duel.weak);
    cr_assert(by_owner || by_holder);
    cr_assert(duel.word.bits.v & C);
    if (duel.upgrade == WR_WORD_DEAD) {
        cr_assert(by_owner);
        return 0;
    }
    cr_assert(duel.upgrade == WR_WORD_OK);
    /* With both: not twice closed. The owner's is a release of a token then, so it is FREE or OK. */
    cr_assert_not(by_holder && duel.release == WR_WORD_DIES);
    return by_holder ? 2 : 1;
}

Test(word, release_and_upgrade_race_closes_once_and_frees_once)
{
    const struct race race = {
        .name = "release vs upgrade, release, weak release",
        .prepare = prepare,
        .sides = {owner, holder},
        .judge = judge,
        .outcomes = {"dead", "owner was last", "holder was last"},
        .least = 1,
        .seconds = 40,
    };
    cr_assert(race_run(&race));
}
