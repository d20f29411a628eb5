//! Since when no pool of a model may serve a request soon, by the context that the request needs.

use crate::types::Mono;

/// From this context on nothing may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lost {
    from: u64,
    since: Mono,
}

/// Invariant: each entry is from less context on than the one before it, and since later; so the first that concerns a
/// request says since when there has been no hope for it.
#[derive(Debug)]
pub(super) struct Hope(Vec<Lost>);

impl Default for Hope {
    /// A model that nobody has served.
    fn default() -> Self {
        let since = Mono(0);
        Self(vec![Lost { from: 0, since }])
    }
}

impl Hope {
    /// From now on this is the most context of a pool that may serve soon.
    pub fn set(&mut self, now: Mono, most_ctx: Option<u64>) {
        // `None` where nothing is beyond reach.
        let from = most_ctx.map_or(Some(0), |ctx| ctx.checked_add(1));
        let mut since = now;
        while let Some(last) = self.0.last()
            && from.is_none_or(|from| last.from <= from)
        {
            // Within reach again, but for what is beyond `from`.
            since = last.since;
            self.0.pop();
        }
        self.0.extend(from.map(|from| Lost { from, since }));
    }

    /// Since when there has been none for a request that needs so much context.
    pub fn lost_since(&self, min_ctx: u64) -> Option<Mono> {
        let lost = self.0.iter().find(|lost| lost.from <= min_ctx);
        lost.map(|lost| lost.since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hope_is_lost_from_some_context_on_and_since_it_was_first_lost() {
        let mut hope = Hope::default();
        let since =
            |hope: &Hope| [0, 10, 11, 20, 21].map(|ctx| hope.lost_since(ctx).map(|at| at.0));
        assert_eq!(since(&hope), [Some(0); 5]);
        hope.set(Mono(1), Some(20));
        assert_eq!(since(&hope), [None, None, None, None, Some(0)]);
        hope.set(Mono(2), Some(10));
        assert_eq!(since(&hope), [None, None, Some(2), Some(2), Some(0)]);
        hope.set(Mono(3), None);
        assert_eq!(since(&hope), [Some(3), Some(3), Some(2), Some(2), Some(0)]);
        hope.set(Mono(4), None);
        assert_eq!(since(&hope)[0], Some(3));
        hope.set(Mono(5), Some(10));
        assert_eq!(since(&hope), [None, None, Some(2), Some(2), Some(0)]);
        hope.set(Mono(6), Some(u64::MAX));
        assert_eq!(hope.lost_since(u64::MAX), None);
        hope.set(Mono(7), Some(20));
        assert_eq!(since(&hope), [None, None, None, None, Some(7)]);
    }
}
