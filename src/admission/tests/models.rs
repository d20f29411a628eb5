//! Which models there are, what each is served by, and what is told of them.

use super::*;

fn named(node: &str) -> NodeId {
    NodeId::new_or_local(node).expect("good")
}

fn serving(pool: &str, models: &[&str]) -> PoolRoute {
    PoolRoute {
        models: models.iter().map(|&model| model.to_owned()).collect(),
        ..route(pool, 2)
    }
}

fn alias(name: &str, models: &[&str]) -> Alias {
    Alias::new(name, models.iter().copied()).expect("good")
}

fn with(aliases: &[Alias]) -> Arc<Admission> {
    let admission = Admission::with_aliases(Clock::new(), SETTINGS, aliases);
    tokio::spawn(Arc::clone(&admission).drive());
    admission
}

fn ask(admission: &Arc<Admission>, model: &str) -> Ask {
    Ask {
        model: admission.model(model).expect("known"),
        weight: 1,
        bytes: 1,
        turn: None,
        avoid: None,
        min_ctx: 0,
    }
}

/// `ID STATE SLOTS` of each model.
fn told(admission: &Arc<Admission>) -> Vec<String> {
    let models = admission.models();
    for model in &models {
        assert_eq!(admission.model_view(&model.id).as_ref(), Some(model));
        assert!(admission.model(&model.id).is_some());
    }
    let names: Vec<_> = models.iter().map(|model| Arc::clone(&model.id)).collect();
    assert_eq!(admission.model_names(99), names);
    let line = |model: &ModelView| format!("{} {} {}", model.id, model.state.as_str(), model.slots);
    models.iter().map(line).collect()
}

#[tokio::test(start_paused = true)]
async fn an_alias_is_served_by_every_pool_of_what_it_stands_for_and_each_slot_counts_once() {
    let aliases = [
        alias("any", &["a", "/m/b.gguf", "none"]),
        alias("b2", &["b"]),
    ];
    let admission = with(&aliases);
    assert_eq!(told(&admission), ["any absent 0", "b2 absent 0"]);
    // One pool has both models, one a path for a name, one the name of an alias.
    admission.set_node(
        &named("n1"),
        &[
            serving("p", &["a", "b", "a"]),
            serving("q", &["/x/b-00001-of-00002.gguf"]),
            serving("r", &["any"]),
            serving("s", &["c"]),
        ],
    );
    assert_eq!(
        told(&admission),
        [
            "a ready 2",
            "any ready 6",
            "b ready 4",
            "b2 ready 4",
            "c ready 2"
        ]
    );
    let view = |name: &str| admission.model_view(name).expect("known");
    let names = |names: &[Arc<str>]| {
        names
            .iter()
            .map(|name| name.to_string())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&view("b").aliases), ["any", "b2"]);
    assert_eq!(names(&view("any").alias_of), ["a", "b", "none"]);
    let mut held = Vec::new();
    let mut pools = Vec::new();
    for _ in 0..6 {
        let permit = admission
            .acquire(ask(&admission, "any"))
            .await
            .expect("a slot");
        pools.push(permit.upstream().pool_id.to_string());
        held.push(permit);
    }
    pools.sort();
    assert_eq!(pools, ["p", "p", "q", "q", "r", "r"]);
    // A queue of its own, which shows at the pools it waits for.
    let waiting = wait_for(&admission, ask(&admission, "any"));
    tokio::task::yield_now().await;
    let waits = |models: &[&str]| {
        let models: Vec<String> = models.iter().map(|&model| model.to_owned()).collect();
        admission.waiting_for(&models)
    };
    assert_eq!(
        (waits(&["a", "b"]), waits(&["any"]), waits(&["c"])),
        (1, 1, 0)
    );
    assert_eq!(admission.waiting(admission.model("a").expect("known")), 0);
    held.clear();
    drop(waiting.await.expect("ran").expect("granted"));

    admission.set_node(&named("n1"), &[]);
    assert_eq!(told(&admission), ["any absent 0", "b2 absent 0"]);
    let began = tokio::time::Instant::now();
    let refused = admission.acquire(ask(&admission, "any")).await.err();
    assert_eq!(refused, Some(Refused::NoReadyPool));
    assert_eq!(began.elapsed(), Duration::from_secs(5));
}

#[tokio::test(start_paused = true)]
async fn names_are_exact_and_the_path_of_a_file_is_as_good_as_its_name() {
    let admission = with(&[]);
    admission.set_node(
        &named("n1"),
        &[serving("p", &["/m/big-00001-of-00003.gguf"])],
    );
    assert_eq!(told(&admission), ["big ready 2"]);
    for name in ["big", "/m/big-00001-of-00003.gguf", "big.gguf"] {
        assert_eq!(admission.model(name), admission.only_model(), "{name}");
        assert!(admission.model_view(name).is_some(), "{name}");
    }
    for name in ["Big", "big ", "/m/big", ""] {
        assert_eq!(admission.model(name), None, "{name}");
        assert_eq!(admission.model_view(name), None, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_ways_in_which_a_model_is_served_are_told_apart_and_counted() {
    let admission = with(&[]);
    let pool = |name: &str, version: Option<&str>, n_ctx: Option<u64>, accepting: bool| PoolRoute {
        engine_version: version.map(str::to_owned),
        n_ctx,
        accepting,
        ..serving(name, &["m"])
    };
    admission.set_node(
        &named("n1"),
        &[
            pool("p", Some("b2"), Some(4096), true),
            pool("q", Some("b1"), Some(8192), true),
            pool("r", Some("b1"), Some(2048), false),
        ],
    );
    admission.set_node(
        &named("n2"),
        &[
            pool("p", Some("b1"), Some(8192), false),
            PoolRoute {
                engine: None,
                ..pool("q", None, None, true)
            },
        ],
    );
    let model = admission.model_view("m").expect("known");
    assert_eq!((model.n_ctx, model.slots), (Some((2048, 8192)), 6));
    let ways: Vec<_> = model
        .variants
        .iter()
        .map(|v| {
            let words = [&v.engine, &v.engine_version].map(|word| word.as_deref().unwrap_or("-"));
            (words.join(" "), v.n_ctx, v.pools, v.slots)
        })
        .collect();
    assert_eq!(
        ways,
        [
            ("- -".to_owned(), None, 1, 2),
            ("llamacpp b1".to_owned(), Some(2048), 1, 0),
            ("llamacpp b1".to_owned(), Some(8192), 2, 2),
            ("llamacpp b2".to_owned(), Some(4096), 1, 2),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn the_state_of_a_model_is_the_best_that_any_of_its_pools_offers_to_a_request() {
    let admission = with(&[]);
    let at = |state: PoolState, accepting: bool, prospective: bool, draining: bool| PoolRoute {
        state,
        accepting,
        prospective,
        draining,
        ..serving("p", &["m"])
    };
    let (ready, loading) = (PoolState::Ready, PoolState::Loading);
    let states = [
        ("ready", at(ready, true, true, false)),
        ("ready", at(PoolState::Unknown, true, true, false)),
        ("busy", at(PoolState::Busy, true, true, false)),
        ("sleeping", at(PoolState::Sleeping, true, true, false)),
        ("loading", at(loading, false, true, false)),
        ("unknown", at(PoolState::Unknown, false, true, false)),
        // Out of reach because somebody wants it so.
        ("draining", at(ready, false, false, true)),
        ("draining", at(PoolState::Unknown, false, false, true)),
        (
            "misconfigured",
            at(PoolState::Misconfigured, false, false, true),
        ),
        // It would not serve without the drain either.
        (
            "unreachable",
            at(PoolState::Unreachable, false, false, true),
        ),
        // Of a node that is not heard.
        ("unreachable", at(ready, false, false, false)),
    ];
    for (better, (word, route)) in states.iter().enumerate() {
        admission.set_node(&named("n1"), std::slice::from_ref(route));
        for (other, worse) in &states[better..] {
            admission.set_node(&named("n2"), std::slice::from_ref(worse));
            let state = admission.models()[0].state;
            assert_eq!(state.as_str(), *word, "{word} beside {other}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn requests_for_a_model_of_this_machine_wait_for_a_while_after_its_last_pool_went() {
    let admission = with(&[]);
    let (local, far) = (named("local"), named("n1"));
    admission.set_node(&local, &[serving("p", &["m"])]);
    admission.set_node(&far, &[serving("p", &["far"])]);
    admission.set_node(&local, &[]);
    // What takes its names along when it leaves is gone at once.
    admission.set_node(&far, &[]);
    assert_eq!(admission.model("far"), None);
    assert_eq!(told(&admission), [""; 0], "what is not there is not listed");
    assert_eq!(admission.only_model(), admission.model("m"));
    // In between somebody asks, and is served when it is back.
    let waiting = wait_for(&admission, ask(&admission, "m"));
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    admission.set_node(&local, &[serving("p", &["m"])]);
    drop(waiting.await.expect("ran").expect("granted"));
    // Its patience begins anew each time, and has an end.
    admission.set_node(&local, &[serving("q", &["other"])]);
    assert_eq!(admission.only_model(), admission.model("other"));
    tokio::time::sleep(Duration::from_millis(4_900)).await;
    let late = wait_for(&admission, ask(&admission, "m"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(admission.model("m"), None);
    assert_eq!(late.await.expect("ran").err(), Some(Refused::NoReadyPool));
    // An engine that is there and lists something else is not missed.
    admission.set_node(&local, &[serving("q", &["another"])]);
    assert_eq!(admission.model("other"), None);
}
