//! What may happen.

use proptest::prelude::*;

use super::MODELS;
use crate::types::Millis;

/// How a pool is described: which of the models it serves as bits, and the rest.
#[derive(Debug, Clone)]
pub(super) struct Described {
    pub models: u8,
    pub accepting: bool,
    pub prospective: bool,
    pub suspect: bool,
    pub slots: u32,
    pub n_ctx: Option<u64>,
}

/// How a request ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    Done,
    ClosedEarly,
    /// Refused or failed, and tried again.
    Busy(Option<Millis>),
    Broken,
    Unreachable,
    /// Its prompt is too long for the pool, and it is tried again.
    TooLong,
}

/// Something that happens. Pools, requests and those in line are named by any number.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Ask {
        model: usize,
        weight: u32,
        min_ctx: u64,
    },
    Answer(usize),
    End(usize, End),
    Served(usize),
    Leave(usize),
    Add(Described),
    Describe(usize, Described),
    Remove(usize),
    Read {
        pool: usize,
        busy: u32,
        ours: Option<u32>,
        begun: Option<Millis>,
        slots: Option<u32>,
    },
    Hang(usize, bool),
    Advance(Millis),
}

pub(super) fn described() -> impl Strategy<Value = Described> {
    let n_ctx = prop_oneof![Just(None), Just(Some(10)), Just(Some(20))];
    (0..8_u8, 0..8_u8, any::<bool>(), 1..5_u32, n_ctx).prop_map(
        |(models, state, suspect, slots, n_ctx)| Described {
            models,
            accepting: state > 1,
            prospective: state > 0,
            suspect,
            slots,
            n_ctx,
        },
    )
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![
        6 => Just(End::Done),
        4 => Just(End::ClosedEarly),
        2 => proptest::option::of(0..40_000_u64).prop_map(End::Busy),
        1 => Just(End::Broken),
        1 => Just(End::Unreachable),
        2 => Just(End::TooLong),
    ]
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let any_one = any::<usize>;
    let min_ctx = prop_oneof![8 => Just(0), 1 => Just(10_u64), 1 => Just(11), 1 => Just(21)];
    prop_oneof![
        10 => (0..MODELS, prop_oneof![3 => Just(1), 1 => 2..6_u32], min_ctx)
            .prop_map(|(model, weight, min_ctx)| Step::Ask { model, weight, min_ctx }),
        4 => any_one().prop_map(Step::Answer),
        6 => (any_one(), end()).prop_map(|(nth, end)| Step::End(nth, end)),
        3 => any_one().prop_map(Step::Served),
        1 => any_one().prop_map(Step::Leave),
        1 => described().prop_map(Step::Add),
        2 => (any_one(), described()).prop_map(|(nth, described)| Step::Describe(nth, described)),
        1 => any_one().prop_map(Step::Remove),
        3 => (
            any_one(),
            0..5_u32,
            proptest::option::of(0..4_u32),
            proptest::option::of(0..500_u64),
            proptest::option::of(1..5_u32),
        )
            .prop_map(|(pool, busy, ours, begun, slots)| Step::Read { pool, busy, ours, begun, slots }),
        1 => (any_one(), any::<bool>()).prop_map(|(nth, hung)| Step::Hang(nth, hung)),
        5 => (1..3_000_u64).prop_map(Step::Advance),
    ]
}
