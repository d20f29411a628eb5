//! The best placed of many pools, kept up as one after the other changes: a tournament.
//!
//! Each pool has a seat, and each match is won by the lower of two places. A pool that changes plays its matches again
//! from the bottom up, until one ends as before: the logarithm of the number of pools at most, nearly always less, and
//! nothing is allocated unless there are more seats than ever. Finding the best placed costs nothing where it may be
//! picked, and grows with how many may not be and come before the one that may. Called by `index` alone.

use super::PoolIx;

/// A pool's place among those of its kind that have a slot free: the lower, the sooner it is picked. By how many slots are
/// busy, then by when it was picked last, then by its number: in one integer, as comparing places is all there is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(u128);

impl Place {
    /// Behind all others: nobody's.
    const NONE: Self = Self(u128::MAX);

    /// `picked` is in picks.
    pub fn new(busy: u32, picked: u64, PoolIx(ix): PoolIx) -> Self {
        Self(u128::from(busy) << 96 | u128::from(picked) << 32 | u128::from(ix))
    }

    fn busy(self) -> u32 {
        (self.0 >> 96) as u32
    }

    fn ix(self) -> PoolIx {
        PoolIx(self.0 as u32)
    }
}

/// A pool's seat, for as long as it is of this kind.
pub(super) type Seat = u32;

#[derive(Debug)]
pub(super) struct Seats {
    /// A tree in one array: node `n` has the lower of nodes `2n` and `2n + 1`; the root is 1, and the latter half are seats.
    nodes: Vec<Place>,
    vacant: Vec<Seat>,
}

impl Default for Seats {
    fn default() -> Self {
        Self {
            nodes: vec![Place::NONE; 2],
            vacant: vec![0],
        }
    }
}

impl Seats {
    /// A seat for one more pool.
    pub fn add(&mut self) -> Seat {
        let seat = self.vacant.pop();
        seat.unwrap_or_else(|| self.grow())
    }

    /// Twice as many seats, of which one is taken.
    fn grow(&mut self) -> Seat {
        let seats = self.nodes.len() / 2;
        let places = self.nodes.split_off(seats);
        self.nodes = vec![Place::NONE; 4 * seats];
        self.nodes[2 * seats..3 * seats].copy_from_slice(&places);
        for node in (1..2 * seats).rev() {
            self.nodes[node] = self.nodes[2 * node].min(self.nodes[2 * node + 1]);
        }
        let seat = |seat| Seat::try_from(seat).expect("pools have numbers of as many bits");
        self.vacant.extend((seats + 1..2 * seats).rev().map(seat));
        seat(seats)
    }

    pub fn remove(&mut self, seat: Seat) {
        self.set(seat, None);
        self.vacant.push(seat);
    }

    /// The pool in this seat has this place now; none when it has no slot free.
    pub fn set(&mut self, seat: Seat, place: Option<Place>) {
        let mut node = self.nodes.len() / 2 + seat as usize;
        let mut place = place.unwrap_or(Place::NONE);
        while self.nodes[node] != place {
            self.nodes[node] = place;
            if node == 1 {
                break;
            }
            place = place.min(self.nodes[node ^ 1]);
            node /= 2;
        }
    }

    /// Whether no pool has a slot free.
    pub fn are_busy(&self) -> bool {
        self.nodes[1] == Place::NONE
    }

    /// The best placed of those that have at most so many slots busy and `may` be picked. Looks at few others than those
    /// placed before it that may not: at all there are, where none may.
    pub fn first(&self, most_busy: u32, mut may: impl FnMut(PoolIx) -> bool) -> Option<PoolIx> {
        self.first_below(1, most_busy, &mut may).map(Place::ix)
    }

    fn first_below(
        &self,
        node: usize,
        most_busy: u32,
        may: &mut impl FnMut(PoolIx) -> bool,
    ) -> Option<Place> {
        let winner = *self.nodes.get(node)?;
        if winner.busy() > most_busy {
            return None;
        }
        if may(winner.ix()) {
            return Some(winner);
        }
        let (left, right) = (2 * node, 2 * node + 1);
        let place = |node: usize| self.nodes.get(node).copied().unwrap_or(Place::NONE);
        let (better, other) = if place(left) <= place(right) {
            (left, right)
        } else {
            (right, left)
        };
        let found = self.first_below(better, most_busy, may);
        if found.is_some_and(|found| found < place(other)) {
            return found;
        }
        let also = self.first_below(other, most_busy, may);
        found.into_iter().chain(also).min()
    }
}

#[cfg(test)]
impl Seats {
    /// All places, sorted.
    pub fn places(&self) -> Vec<Place> {
        let seats = self.nodes[self.nodes.len() / 2..].iter();
        let mut places: Vec<Place> = seats
            .copied()
            .filter(|place| *place != Place::NONE)
            .collect();
        places.sort_unstable();
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(busy: u32, picked: u64, ix: u32) -> Option<Place> {
        Some(Place::new(busy, picked, PoolIx(ix)))
    }

    #[test]
    fn the_least_busy_comes_first_then_the_one_picked_longest_ago_then_the_lowest_number() {
        let mut seats = Seats::default();
        assert!(seats.are_busy());
        let five = [0, 1, 2, 3, 4].map(|_| seats.add());
        let places = [
            (1, 0, 0),
            (0, 2, 1),
            (0, 1, 2),
            (0, 1, 3),
            (u32::MAX - 1, 0, 4),
        ];
        for (seat, (busy, picked, ix)) in five.into_iter().zip(places) {
            seats.set(seat, place(busy, picked, ix));
        }
        let mut passed = Vec::new();
        while let Some(next) = seats.first(1, |ix| !passed.contains(&ix.0)) {
            passed.push(next.0);
        }
        assert_eq!(passed, [2, 3, 1, 0]);
        seats.set(five[2], None);
        seats.remove(five[3]);
        assert_eq!(seats.first(0, |_| true), Some(PoolIx(1)));
        assert_eq!(seats.add(), five[3], "a seat that was left is taken again");
    }

    #[test]
    fn only_those_before_the_one_that_is_found_are_looked_at() {
        let mut seats = Seats::default();
        for ix in 0..1_024 {
            let seat = seats.add();
            seats.set(seat, place(0, u64::from(ix % 32), ix));
        }
        let mut looked_at = std::collections::HashSet::new();
        let first = seats.first(0, |ix| {
            looked_at.insert(ix);
            ix.0 % 32 > 0
        });
        assert_eq!(first, Some(PoolIx(1)));
        assert!(looked_at.len() <= 2 * 32, "{}", looked_at.len());
    }

    #[test]
    fn whatever_changes_the_first_is_the_lowest_of_all() {
        let mut seats = Seats::default();
        let mut there: Vec<(Seat, Option<Place>)> = Vec::new();
        let mut random = 1_u64;
        for step in 0..5_000_u64 {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(step);
            let (busy, nth) = ((random >> 40) as u32 % 5, (random >> 33) as usize);
            match (random >> 60, there.len()) {
                (0..3, len) if len < 40 => there.push((seats.add(), None)),
                (3, 1..) => {
                    let (seat, _) = there.swap_remove(nth % there.len());
                    seats.remove(seat);
                }
                (_, len @ 1..) => {
                    let (seat, held) = &mut there[nth % len];
                    *held = if busy == 4 {
                        None
                    } else {
                        place(busy, step, *seat)
                    };
                    seats.set(*seat, *held);
                }
                _ => {}
            }
            let best = there.iter().filter_map(|(_, place)| *place).min();
            assert_eq!(seats.first(3, |_| true), best.map(Place::ix));
            assert_eq!(seats.are_busy(), best.is_none());
        }
    }
}
