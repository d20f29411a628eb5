//! How many requests may be tried again: when much fails, trying all of it again makes it worse.

/// Retries there are in any fleet (contract §3); a larger one has as many as it has slots.
const LEAST: u64 = 50;
/// The bucket is counted in tenths: so many make a retry, and every finished request brings one.
const TENTHS: u64 = 10;

/// A bucket that is full at the start, kept as what was taken from it: so it grows with the fleet, and a fleet that comes
/// and goes fills nothing.
#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    /// In tenths.
    taken: u64,
}

impl RetryBudget {
    fn size(fleet_slots: u64) -> u64 {
        fleet_slots.max(LEAST).saturating_mul(TENTHS)
    }

    /// Takes one retry out, if there is one.
    pub fn take(&mut self, fleet_slots: u64) -> bool {
        let taken = self.taken.saturating_add(TENTHS);
        let there = taken <= Self::size(fleet_slots);
        if there {
            self.taken = taken;
        }
        there
    }

    /// A request has finished.
    pub fn refill(&mut self, fleet_slots: u64) {
        // What a larger fleet took counts no longer: an empty bucket is as empty as it gets.
        self.taken = self.taken.min(Self::size(fleet_slots)).saturating_sub(1);
    }
}
