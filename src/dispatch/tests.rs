use super::*;
use crate::types::Sample;

mod budget;
mod context;
mod health;
mod pace;
mod queues;
mod slots;
mod weights;

const SETTINGS: Settings = Settings {
    queue_capacity: 4,
    policy: Policy::Reject,
    queue_bytes: 100,
    queue_timeout_ms: 300_000,
    no_pool_wait_ms: 5_000,
    sample_ttl_ms: 20_000,
};

fn ready(models: &[ModelIx], slots: u32) -> PoolSpec {
    PoolSpec {
        models: models.to_vec(),
        accepting: true,
        prospective: true,
        suspect: false,
        slots_total: slots,
        n_ctx: Some(4_096),
    }
}

fn loading(models: &[ModelIx]) -> PoolSpec {
    PoolSpec {
        accepting: false,
        ..ready(models, 1)
    }
}

fn gone(models: &[ModelIx]) -> PoolSpec {
    PoolSpec {
        accepting: false,
        prospective: false,
        ..ready(models, 1)
    }
}

fn at(ms: u64) -> Mono {
    Mono(ms)
}

fn sample(slots_total: u32, busy: u32, ours: Option<u32>) -> Sample {
    Sample {
        slots_total,
        busy,
        ours,
        begun: None,
    }
}

fn want(model: ModelIx, weight: u32, bytes: u64) -> Want {
    Want {
        model,
        weight,
        bytes,
        min_ctx: 0,
        avoid: None,
    }
}

struct Bench {
    dispatch: Dispatch,
    model: ModelIx,
}

impl Bench {
    fn new() -> Self {
        let mut dispatch = Dispatch::new(SETTINGS);
        let model = dispatch.add_model();
        Self { dispatch, model }
    }

    fn ask(&mut self, now: Mono) -> (Ticket, Offer) {
        let turn = self.dispatch.arrive(now);
        (
            turn.ticket,
            self.dispatch.offer(now, turn, want(self.model, 1, 0)),
        )
    }

    fn granted(&mut self, now: Mono) -> Grant {
        match self.ask(now).1 {
            Offer::Granted(grant) => grant,
            other => panic!("expected a grant, got {other:?}"),
        }
    }

    fn pump(&mut self, now: Mono) -> Vec<(Ticket, Verdict)> {
        let mut out = Vec::new();
        self.dispatch.pump(now, &mut out);
        out
    }

    /// What happens when nothing else does.
    fn expire(&mut self, now: Mono) -> Vec<(Ticket, Verdict)> {
        self.pump(now)
    }
}
