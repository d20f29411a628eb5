//! `orchd nodes register`: take in a node without an agent, or announce one whose agent will come. Called by
//! `nodes::run`.

use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use super::wait::{self, Goal};
use crate::cli::{AGENT_LISTENS, Label, MachineId, NodesRegisterArgs, Wanted, show_duration};
use crate::client::Client;
use crate::commands::failure::Exit;
use crate::commands::output;
use crate::types::{Capabilities, EngineRef, HttpUrl, Origin, RegisterReply, RegisterRequest};

pub(super) async fn run(args: NodesRegisterArgs, client: Client) -> anyhow::Result<ExitCode> {
    let engines: Vec<EngineRef> = args
        .engine_specs()?
        .into_iter()
        .map(|spec| EngineRef {
            pool_id: Some(spec.name),
            url: spec.url,
        })
        .collect();
    let agentless = !engines.is_empty();
    let agent = agent_command(&args, client.server());
    // Whoever names the machine knows it; else it is the first one that comes.
    let announced = !agentless && args.machine_id.is_none();
    let request = RegisterRequest {
        labels: args.label_map()?,
        node_id: args.node,
        machine_id: args.machine_id.map(|id| id.0),
        address: args.address,
        pools: Vec::new(),
        capabilities: Capabilities::default(),
        version: None,
        instance_id: None,
        announced,
        engines,
    };
    let reply = client.register(&request).await?;
    let node = reply.node_id.clone();
    output::data(&format!("{node}\n"))?;
    say_what_comes_next(&reply, agentless, &agent);
    if !args.wait {
        return Ok(Exit::Done.into());
    }
    let goal = Goal {
        wanted: Wanted::Online,
        quiet: true,
        on_timeout: "the node stays registered",
    };
    wait::run(vec![node], goal, args.timeout, client).await
}

fn say_what_comes_next(reply: &RegisterReply, agentless: bool, agent: &str) {
    let node = &reply.node_id;
    let timeout = show_duration(Duration::from_millis(reply.node_timeout_ms));
    if agentless {
        output::note(&format!(
            "{node} is registered: the control plane probes its engines, and it goes Online when one of them answers, \
             Offline when none has for {timeout}"
        ));
    } else {
        output::note(&format!(
            "{node} is announced: it goes Online when its agent comes, and Offline when none has come within {timeout}"
        ));
    }
    if !reply.durable {
        output::warning(
            "the control plane cannot write to its disk at the moment: a restart of it forgets this",
        );
    }
    if !agentless {
        output::hint(&format!("start it there: {agent}"));
    }
}

/// The agent that registers as what was announced, as a command line.
fn agent_command(args: &NodesRegisterArgs, server: &HttpUrl) -> String {
    let mut words = vec![
        "orchd agent --node-id".to_owned(),
        args.node.to_string(),
        format!("--server {server}"),
    ];
    words.extend(args.address.iter().flat_map(reached_at));
    if let Some(MachineId(id)) = &args.machine_id {
        words.push(format!("--machine-id {}", shell_word(id)));
    }
    for Label { key, value } in &args.labels {
        words.push(format!("--label {}", shell_word(&format!("{key}={value}"))));
    }
    words.join(" ")
}

/// What an agent has to be told so that it gives this address as its own, beyond what it does by itself.
fn reached_at(address: &HttpUrl) -> Vec<String> {
    let Origin {
        https,
        host,
        port,
        base_path,
        ..
    } = address.origin();
    let mut words = Vec::new();
    match host.parse::<IpAddr>() {
        // It gives the address that it listens on.
        Ok(ip) if base_path.is_empty() => {
            let listen = SocketAddr::new(ip, port);
            if listen != AGENT_LISTENS {
                words.push(format!("--listen {listen}"));
            }
        }
        _ => {
            words.push(format!("--listen 0.0.0.0:{port}"));
            words.push(format!("--advertise {}", shell_word(address.as_str())));
        }
    }
    if https {
        words.push("--tls-cert FILE --tls-key FILE".to_owned());
    }
    words
}

/// A word as a shell takes it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:=@,+%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_told_what_makes_it_give_the_announced_address() {
        for (address, words) in [
            ("http://127.0.0.1:9200", ""),
            ("http://127.0.0.1:9201", "--listen 127.0.0.1:9201"),
            ("http://10.0.0.7:9200", "--listen 10.0.0.7:9200"),
            ("http://10.0.0.7", "--listen 10.0.0.7:80"),
            ("http://[fd00::7]:9200", "--listen [fd00::7]:9200"),
            (
                "https://10.0.0.7:9200",
                "--listen 10.0.0.7:9200 --tls-cert FILE --tls-key FILE",
            ),
            (
                "http://gpu-7.example:9200",
                "--listen 0.0.0.0:9200 --advertise http://gpu-7.example:9200",
            ),
            (
                "http://10.0.0.1:80/gpu-7",
                "--listen 0.0.0.0:80 --advertise http://10.0.0.1:80/gpu-7",
            ),
        ] {
            let address = HttpUrl::new(address).expect("good");
            assert_eq!(reached_at(&address).join(" "), words, "{address}");
        }
    }

    #[test]
    fn words_with_spaces_and_quotes_reach_the_agent_whole() {
        assert_eq!(shell_word("rack=b2"), "rack=b2");
        assert_eq!(shell_word("rack=b 2"), "'rack=b 2'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
