//! A fleet under load while something is done to it, watched all along and held to account at the end.
//!
//! Used by all faults of processes and networks.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use crate::Setting;
use crate::accounts::{Figures, settle};
use crate::clients::Clients;
use crate::injected::Injected;
use crate::scene::{NODES, Scene};
use crate::support::seed::Random;
use crate::watch::Watch;

/// What somebody who injects a fault has.
pub struct Trial<'a> {
    pub scene: &'a mut Scene,
    pub watch: &'a Watch,
    pub clients: &'a Clients,
    pub injected: Injected,
    pub chance: Random,
}

/// What must hold of those who are told an error.
pub struct Told {
    /// The codes that this fault may bring.
    pub codes: &'static [&'static str],
    /// How long after it began a stream is told. (Who is refused may have waited for a slot, and for three attempts.)
    pub within: Duration,
    /// It cannot pass unnoticed: somebody is told, or is tried again.
    pub felt: bool,
}

/// Nobody may be told any.
pub const NOBODY: Told = Told {
    codes: &[],
    within: Duration::ZERO,
    felt: false,
};

impl Trial<'_> {
    /// Somewhere between these many milliseconds, by chance.
    pub fn between(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.chance.below(to - from))
    }

    /// Waits for some such time.
    pub fn pause(&mut self, from: u64, to: u64) {
        let pause = self.between(from, to);
        std::thread::sleep(pause);
    }

    /// A node by chance.
    pub fn any_node(&mut self) -> usize {
        usize::try_from(self.chance.below(NODES.len() as u64)).expect("a small number")
    }

    /// Waits until a node that serves again has served a client at one of the places that begin so, and notes how long that
    /// took.
    pub fn serves_again(&mut self, at: &str) {
        let after = self.injected.healing();
        let took = self.clients.served(after, |place| place.starts_with(at));
        self.injected.took("serves again after", took);
    }
}

/// Does something to a fleet under load, as often as the form of this run says, and gives the line of figures.
pub fn trial(
    setting: &mut Setting,
    mut scene: Scene,
    told: &Told,
    mut act: impl FnMut(&mut Trial),
) -> String {
    let watch = scene.watch();
    let rounds = if setting.long { 3 } else { 1 };
    let address = scene.plane.address;
    let chance = Random(setting.random.next());
    let (injected, answers) = Clients::ask_while(address, &mut setting.random, |clients| {
        let mut trial = Trial {
            scene: &mut scene,
            watch: &watch,
            clients,
            injected: Injected::default(),
            chance,
        };
        let acted = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..rounds {
                clients.go_on(5);
                act(&mut trial);
            }
            clients.end().unwrap_or_else(|open| panic!("{open}"));
        }));
        if let Err(panic) = acted {
            // Nobody shall wait for an answer that may never come.
            trial.scene.plane.kill9();
            resume_unwind(panic);
        }
        trial.injected
    });
    watch.end();
    let figures: Figures = settle(&scene, &answers, &injected, told.codes);
    injected.nothing_reached_the_drained(&scene, &answers);
    let after = figures.told_after;
    assert!(
        after <= told.within,
        "a stream was told after {after:?} only"
    );
    assert!(
        !told.felt || figures.felt(),
        "nobody was told anything, nor tried again"
    );
    figures.line() + &injected.line()
}
