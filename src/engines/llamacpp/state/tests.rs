use serde_json::json;

use super::*;

/// Answers that a healthy engine of two slots gives, one of which works; tests spoil some of them.
#[derive(Clone)]
struct Engine {
    health: Answer<()>,
    props: Answer<Box<Props>>,
    models: Answer<Models>,
    slots: Answer<Vec<Slot>>,
    metrics: Answer<u32>,
}

fn props(more: &serde_json::Value) -> Answer<Box<Props>> {
    let mut props = json!({"total_slots": 2, "build_info": "b1", "is_sleeping": false, "endpoint_slots": true,
        "endpoint_metrics": true, "default_generation_settings": {"n_ctx": 8192}});
    for (key, value) in more.as_object().expect("an object") {
        props[key] = value.clone();
    }
    Ok(serde_json::from_value(props).expect("props"))
}

fn models(names: &[&str]) -> Answer<Models> {
    let data: Vec<_> = names.iter().map(|name| json!({"id": name})).collect();
    Ok(serde_json::from_value(json!({"data": data})).expect("models"))
}

fn slots(busy: usize, total: usize) -> Answer<Vec<Slot>> {
    let slot = |n| Slot {
        is_processing: n < busy,
    };
    Ok((0..total).map(slot).collect())
}

fn engine() -> Engine {
    Engine {
        health: Ok(()),
        props: props(&json!({})),
        models: models(&["m"]),
        slots: slots(1, 2),
        metrics: Ok(1),
    }
}

fn state() -> State {
    State::new(&Declared::default(), false, false)
}

/// A round at this second: what was asked, and the verdict.
fn round(state: &mut State, second: u64, works: bool, engine: &Engine) -> (Vec<Question>, Verdict) {
    let mut asked = Vec::new();
    let mut step = state.begin(Mono(second * 1_000), works);
    loop {
        match step {
            Step::Done(verdict) => return (asked, verdict),
            Step::Ask(question) => {
                asked.push(question);
                step = state.on(match question {
                    Question::Health => Heard::Health(engine.health.clone()),
                    Question::Props => Heard::Props(engine.props.clone()),
                    Question::Models => Heard::Models(engine.models.clone()),
                    Question::Slots => Heard::Slots(engine.slots.clone()),
                    Question::Metrics => Heard::Metrics(engine.metrics.clone()),
                });
            }
        }
    }
}

/// `STATE BUSY DETAIL` of a round.
fn seen(state: &mut State, second: u64, engine: &Engine) -> String {
    let verdict = round(state, second, false, engine).1;
    let busy = verdict.busy.map_or("?".to_owned(), |busy| busy.to_string());
    let detail = verdict.detail.unwrap_or_default();
    format!("{} {busy} {detail}", verdict.state.as_str())
}

#[test]
fn a_healthy_engine_is_asked_for_its_models_once_and_then_for_little() {
    use Question::{Health, Models, Props, Slots};
    let mut state = state();
    let (asked, verdict) = round(&mut state, 0, false, &engine());
    assert_eq!(asked, [Health, Props, Models, Slots]);
    assert_eq!((verdict.state, verdict.busy), (PoolState::Ready, Some(1)));
    let description = state.description.clone();
    assert_eq!(description.models, ["m"]);
    assert_eq!(description.version.as_deref(), Some("b1"));
    assert_eq!(
        (description.slots_total, description.n_ctx),
        (Some(2), Some(8_192))
    );
    for second in [1, 29] {
        assert_eq!(
            round(&mut state, second, false, &engine()).0,
            [Health, Props, Slots]
        );
    }
    assert!(round(&mut state, 30, false, &engine()).0.contains(&Models));
    // Something else is loaded.
    let other = Engine {
        props: props(&json!({"model_path": "/other.gguf"})),
        models: models(&["other"]),
        ..engine()
    };
    round(&mut state, 31, false, &other);
    assert_eq!(state.description.models, ["other"]);
}

#[test]
fn it_loads_works_fills_up_and_goes() {
    let mut state = state();
    let loading = Engine {
        health: Err(Failure::Status(503)),
        ..engine()
    };
    assert_eq!(seen(&mut state, 0, &loading), "loading ? ");
    assert_eq!(seen(&mut state, 1, &engine()), "ready 1 ");
    let full = Engine {
        slots: slots(2, 2),
        ..engine()
    };
    assert_eq!(seen(&mut state, 2, &full), "busy 2 ");
    let gone = Engine {
        health: Err(Failure::Refused("refused".into())),
        ..engine()
    };
    assert_eq!(seen(&mut state, 3, &gone), "unreachable ? refused");
    // Whatever comes back may serve something else.
    assert!(
        round(&mut state, 4, false, &engine())
            .0
            .contains(&Question::Models)
    );
}

#[test]
fn a_good_engine_that_falls_silent_is_busy_for_two_rounds_and_unreachable_in_the_third() {
    let mut state = state();
    let silent = Engine {
        health: Err(Failure::Late),
        ..engine()
    };
    assert_eq!(seen(&mut state, 0, &engine()), "ready 1 ");
    assert!(!state.is_silent());
    for second in 1..3 {
        assert_eq!(seen(&mut state, second, &silent), "busy ? it answers late");
        assert!(state.is_silent(), "it is asked again at once");
    }
    assert_eq!(
        seen(&mut state, 3, &silent),
        "unreachable ? it does not answer"
    );
    assert!(!state.is_silent());
    assert_eq!(
        seen(&mut state, 4, &silent),
        "unreachable ? it does not answer"
    );
    assert_eq!(seen(&mut state, 5, &engine()), "ready 1 ");
    // One that never answered is not there.
    let mut state = super::State::new(&Declared::default(), false, false);
    assert_eq!(
        seen(&mut state, 0, &silent),
        "unreachable ? it does not answer"
    );
}

#[test]
fn a_sleeper_and_a_loader_are_given_three_rounds_too() {
    let silent = Engine {
        health: Err(Failure::Broken("reset".into())),
        ..engine()
    };
    let sleeping = Engine {
        props: props(&json!({"is_sleeping": true})),
        ..engine()
    };
    let mut state = state();
    assert_eq!(seen(&mut state, 0, &sleeping), "sleeping 0 ");
    assert_eq!(seen(&mut state, 1, &silent), "busy ? it answers late");
    // What it did not tell meanwhile must not wake it.
    let untold = Engine {
        props: Err(Failure::Late),
        ..engine()
    };
    assert_eq!(seen(&mut state, 2, &untold), "sleeping 0 ");
    let loading = Engine {
        health: Err(Failure::Status(503)),
        ..engine()
    };
    assert_eq!(seen(&mut state, 3, &loading), "loading ? ");
    for second in 4..6 {
        assert_eq!(
            seen(&mut state, second, &silent),
            "loading ? it answers late"
        );
    }
    assert_eq!(seen(&mut state, 6, &silent), "unreachable ? reset");
}

#[test]
fn an_engine_that_stops_between_two_questions_costs_one_of_them() {
    let mut state = state();
    round(&mut state, 0, false, &engine());
    let stopped = Engine {
        props: Err(Failure::Late),
        slots: Err(Failure::Late),
        ..engine()
    };
    let (asked, verdict) = round(&mut state, 1, false, &stopped);
    assert_eq!(asked, [Question::Health, Question::Props]);
    assert_eq!((verdict.state, verdict.busy), (PoolState::Busy, None));
}

#[test]
fn late_slots_with_a_healthy_engine_are_a_busy_one() {
    let late = Engine {
        slots: Err(Failure::Late),
        ..engine()
    };
    let mut state = state();
    for second in 0..10 {
        assert_eq!(
            seen(&mut state, second, &late),
            "busy ? /slots answers late"
        );
    }
}

#[test]
fn a_sleeper_is_never_asked_for_its_slots_and_is_ready() {
    let sleeping = Engine {
        props: props(&json!({"is_sleeping": true})),
        ..engine()
    };
    let mut state = state();
    for second in [0, 1, 60] {
        let (asked, verdict) = round(&mut state, second, false, &sleeping);
        assert!(!asked.contains(&Question::Slots) && !asked.contains(&Question::Metrics));
        assert_eq!(
            (verdict.state, verdict.busy),
            (PoolState::Sleeping, Some(0))
        );
    }
    // Not told for once, it is still not woken.
    let untold = Engine {
        props: Err(Failure::Late),
        ..engine()
    };
    assert_eq!(seen(&mut state, 61, &untold), "sleeping 0 ");
    assert_eq!(
        seen(&mut state, 62, &engine()),
        "ready 1 ",
        "somebody woke it"
    );
}

#[test]
fn an_engine_that_falls_asleep_is_let_fall_asleep_once_it_idles() {
    let idle = Engine {
        slots: slots(0, 2),
        ..engine()
    };
    let mut state = State::new(&Declared::default(), true, false);
    assert_eq!(seen(&mut state, 0, &engine()), "ready 1 ");
    assert_eq!(seen(&mut state, 1, &idle), "ready 0 ");
    for second in 2..10 {
        let (asked, verdict) = round(&mut state, second, false, &idle);
        assert_eq!(asked, [Question::Health, Question::Props]);
        assert_eq!((verdict.state, verdict.busy), (PoolState::Ready, None));
    }
    // Something of ours runs there: it is awake anyway.
    assert!(
        round(&mut state, 10, true, &engine())
            .0
            .contains(&Question::Slots)
    );
    assert_eq!(
        seen(&mut state, 11, &engine()),
        "ready 1 ",
        "until it idles again"
    );
}

/// The seconds of two hours of rounds, one every five seconds, in which an idle engine was asked for its slots.
fn looks(state: &mut State, idle: &Engine) -> Vec<u64> {
    (0..7_200)
        .step_by(5)
        .filter(|&second| {
            round(state, second, false, idle)
                .0
                .contains(&Question::Slots)
        })
        .collect()
}

#[test]
fn an_engine_that_idles_for_long_is_asked_for_its_slots_more_and_more_seldom() {
    let idle = Engine {
        slots: slots(0, 2),
        ..engine()
    };
    let mut state = state();
    let looks = looks(&mut state, &idle);
    let pauses: Vec<u64> = looks.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(pauses[..11], [5; 11], "the first minute: {looks:?}");
    assert!(pauses.is_sorted(), "{pauses:?}");
    // Whatever it takes to fall asleep, up to ten minutes, comes in three times as long.
    for (pause, look) in pauses.iter().zip(&looks).skip(12) {
        assert!(*pause == 600 || pause * 3 >= *look, "{pause} at {look}");
    }
    assert_eq!(pauses.last(), Some(&600));
    // A slot is seen to work, and it is looked at as before.
    let mut second = 7_200;
    while !round(&mut state, second, false, &engine())
        .0
        .contains(&Question::Slots)
    {
        second += 5;
    }
    let asked = round(&mut state, second + 1, false, &idle).0;
    assert!(asked.contains(&Question::Slots));
    let asked = round(&mut state, second + 6, false, &idle).0;
    assert!(asked.contains(&Question::Slots));
}

#[test]
fn an_engine_that_works_for_us_or_cannot_sleep_is_looked_at_in_every_round() {
    let cannot = Engine {
        props: props(&json!({"is_sleeping": null})),
        slots: slots(0, 2),
        ..engine()
    };
    assert_eq!(looks(&mut state(), &cannot).len(), 1_440);
    let idle = Engine {
        slots: slots(0, 2),
        ..engine()
    };
    let mut state = state();
    looks(&mut state, &idle);
    for second in 7_200..7_210 {
        let asked = round(&mut state, second, true, &idle).0;
        assert!(asked.contains(&Question::Slots), "ours runs there");
    }
    let asked = round(&mut state, 7_211, false, &idle).0;
    assert!(asked.contains(&Question::Slots), "it has just worked");
}

#[test]
fn an_engine_that_was_seen_to_sleep_is_let_sleep_until_its_process_ends() {
    let idle = Engine {
        slots: slots(0, 2),
        ..engine()
    };
    let sleeping = Engine {
        props: props(&json!({"is_sleeping": true})),
        ..engine()
    };
    let gone = Engine {
        health: Err(Failure::Refused("refused".into())),
        ..engine()
    };
    let mut state = state();
    let looks = |state: &mut State, second: u64, engine: &Engine| {
        let asked = round(state, second, false, engine).0;
        asked.contains(&Question::Slots)
    };
    assert!(!looks(&mut state, 0, &sleeping));
    assert!(looks(&mut state, 1, &idle), "woken, it has work");
    assert!(!looks(&mut state, 2, &idle), "and soon it may sleep again");
    assert!(!looks(&mut state, 3, &gone));
    for second in 4..7 {
        assert!(looks(&mut state, second, &idle), "another process");
    }
}

#[test]
fn slots_that_are_off_are_made_up_for_by_metrics() {
    for off in [
        Engine {
            props: props(&json!({"endpoint_slots": false})),
            ..engine()
        },
        // An older build does not tell.
        Engine {
            props: props(&json!({"endpoint_slots": null})),
            slots: Err(Failure::Status(501)),
            ..engine()
        },
    ] {
        let mut state = state();
        assert_eq!(seen(&mut state, 0, &off), "ready 1 ");
        let full = Engine {
            metrics: Ok(2),
            ..off.clone()
        };
        assert_eq!(seen(&mut state, 1, &full), "busy 2 ");
        let more = Engine {
            metrics: Ok(7),
            ..off.clone()
        };
        assert_eq!(
            seen(&mut state, 2, &more),
            "busy 2 ",
            "what waits is in no slot"
        );
        let blind = Engine {
            metrics: Err(Failure::Status(501)),
            ..off
        };
        let said = seen(&mut state, 3, &blind);
        assert!(
            said.starts_with("ready ? /slots and /metrics are off"),
            "{said}"
        );
    }
}

#[test]
fn what_is_no_llama_server_is_said_to_be_none() {
    for (spoilt, said) in [
        (
            Engine {
                health: Err(Failure::Status(404)),
                ..engine()
            },
            "misconfigured ? /health answers 404",
        ),
        (
            Engine {
                models: models(&[]),
                ..engine()
            },
            "misconfigured ? /v1/models names no model",
        ),
        (
            Engine {
                models: Err(Failure::Status(404)),
                ..engine()
            },
            "misconfigured ? /v1/models answers 404",
        ),
        (
            Engine {
                props: Err(Failure::Status(401)),
                ..engine()
            },
            "misconfigured ? it wants a key",
        ),
        (
            Engine {
                slots: Err(Failure::Status(401)),
                ..engine()
            },
            "misconfigured ? it wants a key",
        ),
    ] {
        let found = seen(&mut state(), 0, &spoilt);
        assert!(found.starts_with(said), "{found}");
    }
}

#[test]
fn a_key_that_is_shown_and_refused_is_said_to_be_the_wrong_one() {
    let refuses = Engine {
        props: Err(Failure::Status(401)),
        ..engine()
    };
    let mut state = State::new(&Declared::default(), false, true);
    let said = seen(&mut state, 0, &refuses);
    assert!(
        said.starts_with("misconfigured ? it refuses the key that is shown to it"),
        "{said}"
    );
}

#[test]
fn what_was_declared_holds_until_the_engine_speaks_for_itself() {
    let declared = Declared {
        engine_version: Some("b0".into()),
        slots_total: Some(8),
        slots_free: None,
        models: vec!["declared".into()],
    };
    let mut state = State::new(&declared, false, false);
    let loading = Engine {
        health: Err(Failure::Status(503)),
        ..engine()
    };
    round(&mut state, 0, false, &loading);
    let description = state.description.clone();
    assert_eq!(
        (description.models, description.slots_total),
        (vec!["declared".to_owned()], Some(8))
    );
    round(&mut state, 1, false, &engine());
    let description = state.description;
    assert_eq!(
        (description.models, description.slots_total),
        (vec!["m".to_owned()], Some(2))
    );
    assert_eq!(description.version.as_deref(), Some("b1"));
}

#[test]
fn settings_that_cost_its_users_something_are_told() {
    let advice = |more: serde_json::Value, total: usize| {
        let mut state = state();
        let spoilt = Engine {
            props: props(&more),
            slots: slots(0, total),
            ..engine()
        };
        round(&mut state, 0, false, &spoilt);
        state.advice()
    };
    assert_eq!(advice(json!({}), 2), [""; 0]);
    let one = advice(json!({"total_slots": 1}), 1);
    assert!(
        one.len() == 1 && one[0].contains("one request at a time"),
        "{one:?}"
    );
    let small = json!({"total_slots": 4, "default_generation_settings": {"n_ctx": 2048}});
    let small = advice(small, 4);
    assert!(
        small.len() == 1 && small[0].contains("each of its 4 slots has a context of 2048 tokens"),
        "{small:?}"
    );
    let blind = advice(
        json!({"endpoint_slots": false, "endpoint_metrics": false}),
        2,
    );
    assert!(
        blind[0].contains("--no-slots") && blind[1].contains("past orchd"),
        "{blind:?}"
    );
}
