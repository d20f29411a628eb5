//! How many requests may be tried again.

use super::*;

fn taken(dispatch: &mut Dispatch) -> usize {
    (0..).take_while(|_| dispatch.take_retry()).count()
}

#[test]
fn a_small_fleet_has_fifty_retries_and_gets_one_more_for_ten_finished_requests() {
    let mut b = Bench::new();
    b.dispatch.add_pool(at(0), ready(&[b.model], 4));
    assert_eq!(taken(&mut b.dispatch), 50);
    for finished in 1..=25 {
        let grant = b.granted(at(finished));
        b.dispatch
            .release(at(finished), grant, false, Quarantine::No);
        b.dispatch.finished();
        assert_eq!(b.dispatch.take_retry(), finished % 10 == 0);
    }
}

#[test]
fn the_bucket_is_as_large_as_the_fleet_has_slots_and_never_runs_over() {
    let mut b = Bench::new();
    let pool = b.dispatch.add_pool(at(0), ready(&[b.model], 60));
    let other = b.dispatch.add_pool(at(0), ready(&[b.model], 10));
    for _ in 0..100 {
        let grant = b.granted(at(1));
        b.dispatch.release(at(1), grant, false, Quarantine::No);
        b.dispatch.finished();
    }
    assert_eq!(taken(&mut b.dispatch), 70);
    // A reading finds more slots, as does whoever describes the pool.
    b.dispatch.observe(at(2), pool, sample(100, 0, None));
    assert_eq!(taken(&mut b.dispatch), 40);
    b.dispatch.update_pool(at(3), other, ready(&[b.model], 30));
    assert_eq!(taken(&mut b.dispatch), 20);
    // Pools that come and go fill nothing.
    b.dispatch.remove_pool(at(4), other);
    assert_eq!(taken(&mut b.dispatch), 0);
    let other = b.dispatch.add_pool(at(5), ready(&[b.model], 30));
    assert_eq!(taken(&mut b.dispatch), 0);
    b.dispatch.remove_pool(at(6), other);
    b.dispatch.remove_pool(at(6), pool);
    // What is left is a small fleet with an empty bucket.
    b.dispatch.add_pool(at(7), ready(&[b.model], 1));
    for _ in 0..10 {
        let grant = b.granted(at(7));
        b.dispatch.release(at(7), grant, false, Quarantine::No);
        b.dispatch.finished();
    }
    assert_eq!(taken(&mut b.dispatch), 1);
}
