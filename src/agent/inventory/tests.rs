use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::types::{Gpu, HealthStatus};

use super::*;

const H100: u64 = 85_520_809_984;
const BOARD: Board = Board {
    cpu_cores: Some(20),
    ram_total_bytes: Some(128_000_000_000),
};
const RAM_AVAILABLE: u64 = 100_000_000_000;

fn recorded(name: &str) -> Value {
    let path = format!(
        "{}/tests/fixtures/gpu/{name}.json",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = fs::read_to_string(path).expect("the fixture is there");
    serde_json::from_str(&text).expect("it is JSON")
}

/// What a driver answers that answers like this file.
fn answered(value: &Value) -> Snapshot {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gpus.json");
    fs::write(&path, value.to_string()).expect("it is written");
    let (mut source, _) = FixtureSource::new(path).expect("it stands in for NVML");
    Snapshot {
        driver: source.read(),
        on_bus: source.on_bus(),
        ram_available_bytes: Some(RAM_AVAILABLE),
    }
}

/// The report after a first reading.
fn first(name: &str) -> Report {
    History::new(BOARD).on_snapshot(&answered(&recorded(name)))
}

fn codes(report: &Report) -> Vec<&str> {
    let health = &report.health;
    assert_eq!(
        health.status == HealthStatus::Degraded,
        !health.reasons.is_empty(),
        "{health:?}"
    );
    for reason in &health.reasons {
        assert!(
            !reason.message.is_empty() && !reason.message.contains('\n'),
            "one line: {reason:?}"
        );
    }
    health.reasons.iter().map(|r| r.code.as_str()).collect()
}

fn message(report: &Report) -> &str {
    assert_eq!(report.health.reasons.len(), 1, "{:?}", report.health);
    &report.health.reasons[0].message
}

fn indices(report: &Report) -> Vec<u32> {
    let gpus = &report.capabilities.gpus;
    gpus.iter().map(|gpu| gpu.device_id).collect()
}

#[test]
fn a_healthy_card_tells_all_it_has_and_what_it_lacks_is_left_out() {
    let report = first("h100");
    assert_eq!(codes(&report), [""; 0]);
    assert_eq!(
        serde_json::to_value(&report).expect("it is JSON"),
        json!({
            "gpus": [{
                "gpu": {
                    "device_id": 0, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": H100, "compute_capability": "9.0",
                    "uuid": "GPU-a0000000-1111-4222-8333-444455556666", "driver_version": "580.159.04",
                    "cuda_version": "13.0", "mig": false,
                },
                "vram_free_bytes": 85_017_493_504_u64, "vram_used_bytes": 503_316_480, "utilization_percent": 0,
                "temperature_celsius": 37, "power_milliwatts": 124_681, "power_limit_milliwatts": 700_000,
                "fan_percent": null, "ecc": {"enabled": true, "uncorrected_errors": 0}, "mig": false, "trouble": null,
            }],
            "capabilities": {
                "gpus": [{
                    "device_id": 0, "name": "NVIDIA H100 80GB HBM3", "vram_total_bytes": H100, "compute_capability": "9.0",
                    "uuid": "GPU-a0000000-1111-4222-8333-444455556666", "driver_version": "580.159.04",
                    "cuda_version": "13.0", "mig": false,
                }],
                "cpu_cores": 20, "ram_total_bytes": 128_000_000_000_u64,
            },
            "health": {"status": "ok", "reasons": []},
            "driver_version": "580.159.04", "cuda_version": "13.0",
        })
    );
}

#[test]
fn a_card_that_lacks_nearly_everything_is_no_trouble() {
    let report = first("bare");
    assert_eq!(codes(&report), [""; 0]);
    let reading = &report.gpus[0];
    assert_eq!(
        reading.gpu,
        Gpu {
            name: "NVIDIA GeForce GTX 750".to_owned(),
            vram_total_bytes: 2_100_953_088,
            ..Gpu::default()
        }
    );
    assert_eq!(
        (reading.temperature_celsius, reading.fan_percent),
        (None, Some(33))
    );
    assert_eq!((reading.ecc, reading.power_milliwatts), (None, None));
}

#[test]
fn what_changes_from_reading_to_reading_is_not_registered() {
    let mut history = History::new(BOARD);
    let mut file = recorded("h100");
    let before = history.on_snapshot(&answered(&file));
    file["gpus"][0]["temp"] = json!(71);
    file["gpus"][0]["power_mw"] = json!(650_000);
    file["gpus"][0]["mem"] = json!([H100, 1, H100 - 1]);
    file["gpus"][0]["util"] = json!("c_nvmlUtilization_t(gpu: 98 %, memory: 40 %)");
    let after = history.on_snapshot(&answered(&file));
    assert_eq!(after.gpus[0].utilization_percent, Some(98));
    assert_eq!(after.vram_free(None), Some(1));
    assert_ne!(after, before);
    assert_eq!(after.capabilities, before.capabilities);
    assert_eq!(after.health, before.health);
}

#[test]
fn eight_cards_are_eight_cards() {
    let report = first("h100x8");
    assert_eq!(codes(&report), [""; 0]);
    assert_eq!(indices(&report), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(report.gpus[7].utilization_percent, Some(70));
    assert_eq!(report.vram_free(None), Some(8 * H100 - 36_000_000_000));
}

#[test]
fn a_mask_leaves_the_devices_visible_that_cuda_would() {
    let report = first("h100x8");
    let free = |index: u64| H100 - (index + 1) * 1_000_000_000;
    let some = |devices: &[u64]| Some(devices.iter().map(|index| free(*index)).sum::<u64>());
    for (mask, expected) in [
        ("0", some(&[0])),
        ("0,1", some(&[0, 1])),
        (" 3 , 5 ", some(&[3, 5])),
        ("2,2", some(&[2])),
        ("GPU-a3000003-1111-4222-8333-444455556666", some(&[3])),
        ("GPU-a3,GPU-a4", some(&[3, 4])),
        ("GPU-a3,7", some(&[3, 7])),
        // What comes after a device that is none is hidden.
        ("1,-1,2", some(&[1])),
        ("1,8,2", some(&[1])),
        // The beginning of eight names is none of them.
        ("GPU-a", None),
        ("8", None),
        ("-1", None),
        ("", None),
        ("all", None),
        ("MIG-a3000003", None),
    ] {
        assert_eq!(report.vram_free(Some(mask)), expected, "{mask:?}");
    }
    assert_eq!(first("no_driver").vram_free(None), None);
    let mut file = recorded("h100x8");
    file["gpus"][1]["mem"] = json!("ERR Unknown Error");
    let report = History::new(BOARD).on_snapshot(&answered(&file));
    assert_eq!(report.vram_free(None), None, "one of them is not known");
    assert_eq!(report.vram_free(Some("0,1")), None);
    assert_eq!(report.vram_free(Some("0")), some(&[0]));
}

#[test]
fn a_machine_without_a_driver_has_no_gpus_and_says_why() {
    for (name, part) in [
        ("no_driver", "no NVIDIA driver"),
        ("driver_not_loaded", "modprobe"),
    ] {
        let report = first(name);
        assert_eq!(codes(&report), ["NO_DRIVER"], "{name}");
        assert!(message(&report).contains(part), "{}", message(&report));
        assert_eq!(report.gpus, []);
        assert_eq!(report.capabilities.cpu_cores, Some(20));
        assert_eq!(report.capabilities.ram_total_bytes, Some(128_000_000_000));
    }
}

#[test]
fn a_machine_with_neither_a_driver_nor_a_gpu_has_nothing_wrong_with_it_and_it_is_said() {
    for name in ["no_gpu", "driver_without_gpu"] {
        let report = first(name);
        assert_eq!(codes(&report), [""; 0], "{name}");
        assert!(
            report
                .note
                .is_some_and(|note| note.contains("no NVIDIA GPU on its PCI bus")),
            "{report:?}"
        );
        assert_eq!(report.gpus, []);
        assert_eq!(report.capabilities.cpu_cores, Some(20));
    }
    // One whose card is taken out under way, too.
    let mut history = History::new(BOARD);
    let there = history.on_snapshot(&answered(&recorded("h100")));
    assert_eq!(there.note, None);
    let gone = history.on_snapshot(&answered(&recorded("no_gpu")));
    assert_eq!((codes(&gone).len(), gone.capabilities.gpus.len()), (0, 0));
    assert_eq!(history.on_snapshot(&answered(&recorded("h100"))), there);
}

#[test]
fn a_driver_that_is_unloaded_takes_its_gpus_along_and_brings_them_back() {
    let mut history = History::new(BOARD);
    let there = history.on_snapshot(&answered(&recorded("h100")));
    let gone = history.on_snapshot(&answered(&recorded("no_driver")));
    assert_eq!(codes(&gone), ["NO_DRIVER"]);
    assert_eq!(gone.capabilities.gpus, []);
    assert_eq!(history.on_snapshot(&answered(&recorded("h100"))), there);
}

#[test]
fn a_driver_updated_under_its_own_feet_asks_for_a_reboot_and_keeps_what_was_known() {
    let report = first("mismatch");
    assert_eq!(codes(&report), ["DRIVER_MISMATCH"]);
    assert!(message(&report).contains("reboot"), "{}", message(&report));
    assert_eq!(report.gpus, []);

    let mut history = History::new(BOARD);
    let before = history.on_snapshot(&answered(&recorded("h100")));
    let report = history.on_snapshot(&answered(&recorded("mismatch")));
    assert_eq!(codes(&report), ["DRIVER_MISMATCH"]);
    assert_eq!(report.capabilities, before.capabilities);
    assert_eq!(
        report.vram_free(None),
        None,
        "what was free then is not told as free now"
    );
}

#[test]
fn an_error_of_nvml_is_told_in_its_words_and_keeps_what_was_known() {
    let mut history = History::new(BOARD);
    let report = history.on_snapshot(&answered(&recorded("broken")));
    assert_eq!(codes(&report), ["NVML_ERROR"]);
    assert!(
        message(&report).contains("an internal driver error occurred"),
        "{}",
        message(&report)
    );
    let before = history.on_snapshot(&answered(&recorded("ecc")));
    let report = history.on_snapshot(&answered(&recorded("broken")));
    assert_eq!(codes(&report), ["ECC_ERRORS", "NVML_ERROR"]);
    assert_eq!(report.capabilities, before.capabilities);
}

#[test]
fn a_gpu_off_the_bus_is_named_and_the_others_stay() {
    let report = first("lost");
    assert_eq!(codes(&report), ["GPU_LOST"]);
    assert_eq!(
        message(&report),
        "GPU 1 has fallen off the bus: reboot this machine, and reseat or replace the card if it happens again"
    );
    assert_eq!(indices(&report), [0, 2]);
    assert_eq!(report.gpus.len(), 3);
    assert!(report.gpus[1].is_lost());
    assert_eq!(report.vram_free(None), Some(2 * 85_017_493_504));
    assert_eq!(report.vram_free(Some("1")), None);
}

#[test]
fn a_gpu_that_falls_off_later_is_named_by_what_it_was() {
    let mut history = History::new(BOARD);
    let mut file = recorded("h100x8");
    history.on_snapshot(&answered(&file));
    let card = file["gpus"][1].clone();
    file["gpus"][1] = json!({"index": 1, "error": "GpuLost"});
    for _ in 0..2 {
        let report = history.on_snapshot(&answered(&file));
        assert_eq!(codes(&report), ["GPU_LOST"]);
        assert!(
            message(&report).starts_with(
                "GPU 1 (NVIDIA H100 80GB HBM3, GPU-a1000001-1111-4222-8333-444455556666) has fallen off the bus"
            ),
            "{}",
            message(&report)
        );
        assert_eq!(indices(&report), [0, 2, 3, 4, 5, 6, 7]);
        assert_eq!(report.gpus[1].gpu.name, "NVIDIA H100 80GB HBM3");
    }
    file["gpus"][1] = card;
    let report = history.on_snapshot(&answered(&file));
    assert_eq!(codes(&report), [""; 0]);
    assert_eq!(indices(&report).len(), 8);
}

#[test]
fn a_gpu_lost_in_the_middle_of_a_reading_is_lost() {
    let report = first("lost_while_asked");
    assert_eq!(codes(&report), ["GPU_LOST"]);
    assert!(
        message(&report).contains("GPU-a1000001-"),
        "{}",
        message(&report)
    );
    assert_eq!(indices(&report), [0]);
}

#[test]
fn a_gpu_that_wants_a_reset_is_told_how() {
    let report = first("needs_reset");
    assert_eq!(codes(&report), ["GPU_LOST"]);
    assert!(
        message(&report).contains("nvidia-smi --gpu-reset -i 1"),
        "{}",
        message(&report)
    );
    assert_eq!(indices(&report), [0]);
}

#[test]
fn a_gpu_that_is_not_counted_any_more_is_missed_even_where_others_take_its_index() {
    let mut history = History::new(BOARD);
    let mut file = recorded("h100x8");
    history.on_snapshot(&answered(&file));
    let gpus = file["gpus"].as_array_mut().expect("a list");
    gpus.remove(1);
    for (index, gpu) in gpus.iter_mut().enumerate() {
        gpu["index"] = json!(index);
    }
    for _ in 0..2 {
        let report = history.on_snapshot(&answered(&file));
        assert_eq!(codes(&report), ["GPU_LOST"]);
        assert!(
            message(&report).contains("GPU-a1000001-"),
            "{}",
            message(&report)
        );
        assert_eq!(indices(&report), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(report.gpus.len(), 8);
        assert_eq!(
            report.vram_free(Some("1")),
            Some(H100 - 3_000_000_000),
            "the index is that of the card which has it now"
        );
    }
}

#[test]
fn a_gpu_that_only_fails_to_answer_stays_registered() {
    let mut history = History::new(BOARD);
    let mut file = recorded("h100x8");
    let before = history.on_snapshot(&answered(&file));
    file["gpus"][4] = json!({"index": 4, "error": "Unknown Error"});
    let report = history.on_snapshot(&answered(&file));
    assert_eq!(codes(&report), ["NVML_ERROR"]);
    assert!(
        message(&report).contains("Unknown Error"),
        "{}",
        message(&report)
    );
    assert_eq!(report.capabilities, before.capabilities);
    // One that never answered has nothing to register.
    let report = History::new(BOARD).on_snapshot(&answered(&file));
    assert_eq!(codes(&report), ["NVML_ERROR"]);
    assert_eq!(indices(&report), [0, 1, 2, 3, 5, 6, 7]);
}

#[test]
fn a_static_value_that_one_call_fails_to_give_is_what_it_was() {
    let mut history = History::new(BOARD);
    let mut file = recorded("h100");
    let before = history.on_snapshot(&answered(&file));
    file["driver"] = json!("ERR Unknown Error");
    file["cuda"] = json!("ERR Unknown Error");
    for key in ["name", "uuid", "cc", "mig"] {
        file["gpus"][0][key] = json!("ERR Unknown Error");
    }
    let after = history.on_snapshot(&answered(&file));
    assert_eq!(after.capabilities, before.capabilities);
    assert_eq!(codes(&after), [""; 0]);
    file["gpus"][0]["mem"] = json!("ERR Unknown Error");
    let after = history.on_snapshot(&answered(&file));
    assert_eq!(after.capabilities, before.capabilities);
    assert_eq!(codes(&after), ["NVML_ERROR"]);
}

#[test]
fn a_gpu_that_shares_the_machines_memory_tells_that_as_its_own() {
    let report = first("unified");
    assert_eq!(codes(&report), ["UNIFIED_MEMORY"]);
    let gpu = &report.capabilities.gpus[0];
    assert_eq!(gpu.unified_memory, Some(true));
    assert_eq!(gpu.vram_total_bytes, 128_000_000_000);
    assert_eq!(report.vram_free(None), Some(RAM_AVAILABLE));
    assert_eq!(report.gpus[0].vram_used_bytes, Some(28_000_000_000));
    // Two of them do not have it twice.
    let mut file = recorded("unified");
    let mut second = file["gpus"][0].clone();
    second["index"] = json!(1);
    second["uuid"] = json!("GPU-0b100001-1111-4222-8333-444455556666");
    file["gpus"].as_array_mut().expect("a list").push(second);
    let report = History::new(BOARD).on_snapshot(&answered(&file));
    assert_eq!(report.vram_free(None), Some(RAM_AVAILABLE));
    assert_eq!(report.vram_free(Some("1")), Some(RAM_AVAILABLE));
}

#[test]
fn a_gpu_in_instances_says_so() {
    let report = first("mig");
    assert_eq!(codes(&report), ["MIG_ENABLED"]);
    assert_eq!(report.capabilities.gpus[0].mig, Some(true));
    assert_eq!(report.gpus[0].utilization_percent, None);
    assert_eq!(
        report.gpus[0].trouble.as_ref(),
        report.health.reasons.first()
    );
}

#[test]
fn errors_that_memory_could_not_correct_degrade_the_node() {
    let report = first("ecc");
    assert_eq!(codes(&report), ["ECC_ERRORS"]);
    assert!(
        message(&report).starts_with("GPU 1 (NVIDIA H100 80GB HBM3, GPU-a1000001-")
            && message(&report).contains(" 3 uncorrected"),
        "{}",
        message(&report)
    );
    assert_eq!(indices(&report), [0, 1]);
    // More of them are the same finding.
    let mut file = recorded("ecc");
    file["gpus"][1]["ecc"] = json!("4");
    let more = History::new(BOARD).on_snapshot(&answered(&file));
    assert_ne!(more.health, report.health);
    assert_eq!(more.findings, report.findings);
}

#[test]
fn more_gpus_than_a_node_may_have_are_cut_off_and_told() {
    let gpus: Vec<Value> = (0..65)
        .map(|index| json!({"index": index, "name": "H100", "uuid": format!("GPU-{index:08x}"), "mem": [2, 1, 1]}))
        .collect();
    let report = History::new(BOARD).on_snapshot(&answered(&json!({"gpus": gpus})));
    assert_eq!(codes(&report), ["TOO_MANY_GPUS"]);
    assert_eq!(report.capabilities.gpus.len(), 64);
}

#[test]
fn a_list_as_it_is_registered_stands_in_for_the_driver() {
    let report = first("registered");
    assert_eq!(codes(&report), [""; 0]);
    let gpus = &report.capabilities.gpus;
    assert_eq!(gpus.len(), 2);
    assert_eq!(gpus[0].vram_total_bytes, 24_146_608_128);
    assert_eq!(gpus[0].compute_capability.as_deref(), Some("8.6"));
    assert_eq!(gpus[0].driver_version.as_deref(), Some("570.86"));
    assert_eq!(report.vram_free(None), None);
}

#[test]
fn a_file_that_cannot_stand_in_for_the_driver_says_what_is_wrong() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gpus.json");
    for (text, part) in [
        ("{", "EOF"),
        ("7", "neither a list nor an object"),
        ("{}", "`gpus` is no list"),
        (r#"[{"device_id": -1}]"#, "-1"),
        (r#"{"gpus": [{"temp": []}]}"#, "`gpus[0]`: `temp` is []"),
        (r#"{"gpus": [{"mem": [1]}]}"#, "`gpus[0]`: `mem` is [1]"),
        (r#"{"gpus": [], "period_ms": "soon"}"#, "`period_ms`"),
    ] {
        fs::write(&path, text).expect("it is written");
        let error = FixtureSource::new(path.clone())
            .expect_err(text)
            .to_string();
        assert!(
            error.contains("gpus.json") && error.contains(part),
            "{text}: {error}"
        );
    }
}

/// The side of the thread, played by the test.
struct Driven {
    asked: std_mpsc::Receiver<()>,
    answer: mpsc::Sender<Snapshot>,
    reports: watch::Receiver<Arc<Report>>,
    keeper: tokio::task::JoinHandle<()>,
}

fn driven() -> Driven {
    let (ask, asked) = std_mpsc::channel();
    let (answer, answers) = mpsc::channel(1);
    let (sender, reports) = watch::channel(Arc::new(Report::empty(BOARD)));
    let publish = Publisher {
        sender,
        begun: false,
    };
    let history = History::new(BOARD);
    let keeper = tokio::spawn(keep(ask, answers, publish, history, Pace::default()));
    Driven {
        asked,
        answer,
        reports,
        keeper,
    }
}

impl Driven {
    async fn answers(&self, name: &str) {
        let answer = self.answer.send(answered(&recorded(name))).await;
        answer.expect("somebody waits for it");
    }

    async fn next(&mut self) -> Arc<Report> {
        self.reports.changed().await.expect("there is more");
        Arc::clone(&self.reports.borrow_and_update())
    }
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_does_not_answer_is_told_and_asked_nothing_more_and_recovers() {
    let mut driven = driven();
    let begun = Instant::now();
    driven.answers("h100").await;
    let good = driven.next().await;
    assert_eq!(codes(&good), [""; 0]);
    assert_eq!(begun.elapsed(), Duration::ZERO);

    let late = driven.next().await;
    assert_eq!(codes(&late), ["NVML_TIMEOUT"]);
    assert!(message(&late).contains("for 10 s"), "{}", message(&late));
    assert_eq!(late.capabilities, good.capabilities);
    assert_eq!(late.gpus[0].gpu, good.gpus[0].gpu);
    assert_eq!(late.vram_free(None), None);
    assert_eq!(
        begun.elapsed(),
        Duration::from_secs(20),
        "asked after ten seconds, waited for ten"
    );
    let later = driven.next().await;
    assert!(message(&later).contains("for 20 s"), "{}", message(&later));
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
    assert_eq!(driven.asked.try_iter().count(), 2, "one question at a time");

    driven.answers("h100").await;
    assert_eq!(driven.next().await, good);
    assert_eq!(begun.elapsed(), Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_never_answered_leaves_a_node_without_gpus() {
    let mut driven = driven();
    let begun = Instant::now();
    let report = driven.next().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(10));
    assert_eq!(codes(&report), ["NVML_TIMEOUT"]);
    assert_eq!(report.capabilities.gpus, []);
    assert_eq!(report.capabilities.cpu_cores, Some(20));
}

#[tokio::test(start_paused = true)]
async fn readings_that_say_the_same_wake_nobody_and_a_missing_driver_is_asked_for_each_minute() {
    let mut driven = driven();
    let begun = Instant::now();
    driven.answers("h100").await;
    driven.next().await;
    driven.answers("h100").await;
    driven.answers("no_driver").await;
    let report = driven.next().await;
    assert_eq!(codes(&report), ["NO_DRIVER"]);
    assert_eq!(
        begun.elapsed(),
        Duration::from_secs(20),
        "nothing was told after ten"
    );
    assert_eq!(driven.asked.try_iter().count(), 3);
    driven.answers("h100").await;
    driven.next().await;
    assert_eq!(begun.elapsed(), Duration::from_secs(80));
}

#[tokio::test(start_paused = true)]
async fn a_thread_that_ends_is_told_as_an_error_of_nvml() {
    let mut driven = driven();
    driven.answers("h100").await;
    let good = driven.next().await;
    let Driven { answer, asked, .. } = &mut driven;
    drop(std::mem::replace(answer, mpsc::channel(1).0));
    drop(std::mem::replace(asked, std_mpsc::channel().1));
    let report = driven.next().await;
    assert_eq!(codes(&report), ["NVML_ERROR"]);
    assert_eq!(report.capabilities, good.capabilities);
}

#[tokio::test(start_paused = true)]
async fn when_nobody_listens_any_more_nothing_is_asked_any_more() {
    let mut driven = driven();
    driven.answers("h100").await;
    driven.next().await;
    drop(driven.reports);
    driven.keeper.await.expect("it ends by itself");
    assert_eq!(driven.asked.try_iter().count(), 1);
    assert!(driven.asked.recv().is_err(), "which ends the thread");
}

/// Waits until a report has these codes.
async fn until(reports: &mut watch::Receiver<Arc<Report>>, wanted: &[&str]) -> Arc<Report> {
    let seen = reports.wait_for(|report| codes(report) == wanted);
    let seen = tokio::time::timeout(Duration::from_secs(10), seen).await;
    let seen = seen.unwrap_or_else(|_| panic!("not within 10 s: {wanted:?}"));
    Arc::clone(&seen.expect("there are more readings"))
}

fn rewrite(path: &Path, mut value: Value) {
    value["period_ms"] = json!(20);
    value["deadline_ms"] = json!(50);
    let beside = path.with_extension("new");
    fs::write(&beside, value.to_string()).expect("it is written");
    fs::rename(&beside, path).expect("it takes the old one's place");
}

#[tokio::test]
async fn the_file_is_read_again_each_time_and_a_hang_in_it_delays_nobody() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("gpus.json");
    rewrite(&path, recorded("hang"));
    let mut reports = start(Some(path.clone())).await.expect("it starts");
    assert!(reports.borrow().gpus.is_empty(), "nothing is waited for");
    reports.changed().await.expect("a first report");
    let report = Arc::clone(&reports.borrow_and_update());
    assert_eq!(codes(&report), ["NVML_TIMEOUT"]);
    assert!(
        message(&report).contains("for 50 ms"),
        "{}",
        message(&report)
    );

    rewrite(&path, recorded("h100x8"));
    let report = until(&mut reports, &[]).await;
    assert_eq!(indices(&report).len(), 8);
    rewrite(&path, recorded("hang"));
    let report = until(&mut reports, &["NVML_TIMEOUT"]).await;
    assert_eq!(indices(&report).len(), 8);
    rewrite(&path, recorded("no_driver"));
    until(&mut reports, &["NO_DRIVER"]).await;
    rewrite(&path, recorded("h100"));
    until(&mut reports, &[]).await;
    fs::remove_file(&path).expect("it was there");
    let report = until(&mut reports, &["NVML_ERROR"]).await;
    assert!(
        message(&report).contains("gpus.json"),
        "{}",
        message(&report)
    );
    assert_eq!(indices(&report), [0]);
}

#[tokio::test]
async fn without_a_file_the_driver_of_this_machine_is_asked_whatever_it_is() {
    let mut reports = start(None).await.expect("it starts");
    reports.changed().await.expect("a first report");
    let report = Arc::clone(&reports.borrow());
    assert!(report.capabilities.cpu_cores.is_some_and(|cores| cores > 0));
    assert!(
        report
            .capabilities
            .ram_total_bytes
            .is_some_and(|bytes| bytes > 0)
    );
    // With or without a GPU here: a reason for each that is missing, and no word of any that is not.
    assert!(!codes(&report).is_empty() || report.gpus.iter().all(|gpu| gpu.trouble.is_none()));
}
