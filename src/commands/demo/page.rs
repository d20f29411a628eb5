//! The start page: what runs where, and what to try, to be copied and pasted.
//!
//! Invariants: whatever is to be pasted works as it stands, in any shell and directory, and is no wider than 80 columns
//! unless a path is.

use std::fmt::Write as _;

use anstyle::Style;

use super::super::words::counted;
use super::Words;
use crate::demo::{Fleet, NODE_TIMEOUT};

/// All that the page says.
pub(super) struct Page {
    /// How this executable is called.
    typed: String,
    why: String,
    built_in: bool,
    elsewhere: bool,
    url: String,
    server_pid: u32,
    nodes: Vec<Node>,
    logs: String,
}

struct Node {
    name: String,
    agent_pid: u32,
    agent: String,
    engine_pid: u32,
    engine: String,
}

impl Page {
    pub fn of(fleet: &Fleet, words: &Words) -> Self {
        let nodes = fleet.nodes().map(|(name, agent, engine)| Node {
            name: name.to_owned(),
            agent_pid: agent.pid(),
            agent: agent.address.to_string(),
            engine_pid: engine.pid(),
            engine: engine.address.to_string(),
        });
        let server = fleet.control_plane();
        let built_in = fleet
            .nodes()
            .all(|(_, _, engine)| engine.line.program.is_none());
        Self {
            typed: words.typed.clone(),
            why: words.why.clone(),
            built_in,
            elsewhere: words.elsewhere,
            url: format!("http://{}", server.address),
            server_pid: server.pid(),
            nodes: nodes.collect(),
            logs: fleet.dir().display().to_string(),
        }
    }

    pub fn text(&self) -> String {
        format!("\n{}\n{}\n{}", self.fleet(), self.to_try(), self.end())
    }

    fn fleet(&self) -> String {
        let bold = Style::new().bold();
        let mut text = format!(
            "{bold}A control plane and {nodes} run on this machine.{bold:#}\n\n\
             \x20 control plane   {url}   pid {pid}\n\n\
             \x20 {bold}{node:<9}{agent:<31}{engine}{bold:#}\n",
            nodes = counted(self.nodes.len(), "node"),
            url = self.url,
            pid = self.server_pid,
            node = "NODE",
            agent = "AGENT",
            engine = "ENGINE",
        );
        for node in &self.nodes {
            let agent = format!("{:<17} pid {}", node.agent, node.agent_pid);
            let engine = format!("{:<17} pid {}", node.engine, node.engine_pid);
            let _ = writeln!(text, "  {:<9}{agent:<31}{engine}", node.name);
        }
        let what = if self.built_in {
            "The engines are orchd's built-in ones, which are no language models"
        } else {
            "The engines are llama-servers"
        };
        let _ = write!(text, "\n{what}\n({}).\n", self.why);
        text
    }

    fn to_try(&self) -> String {
        let mut text = "To try, in another terminal:\n".to_owned();
        if self.typed != "orchd" {
            let _ = write!(text, "\n  alias orchd={}\n", self.typed);
        }
        if self.elsewhere {
            let gap = if self.typed == "orchd" { "\n" } else { "" };
            let _ = writeln!(text, "{gap}  export ORCHD_SERVER={}", self.url);
        }
        let head = if self.built_in { "-N" } else { "-iN" };
        let chat = format!(
            "curl {head} {}/v1/chat/completions \\\n\
             -H 'content-type: application/json' \\\n\
             -d '{{\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello!\"}}]}}'",
            self.url
        );
        let node = self.nodes.get(1).or(self.nodes.first());
        let name = node.map_or("node-1", |node| &node.name);
        let all: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let some = all[..all.len().min(2)].join(" ");
        let whose = if self.built_in {
            "chat; the answer says which node it comes from"
        } else {
            "chat; x-orchd-node is the node it comes from"
        };
        let python = format!(
            "import openai\n\
             client = openai.OpenAI(base_url=\"{}/v1\", api_key=\"none\")\n\
             client.models.list()",
            self.url
        );
        let (agent, engine) = node.map_or((0, 0), |node| (node.agent_pid, node.engine_pid));
        let timeout = NODE_TIMEOUT.as_secs();
        for (what, commands) in [
            (whose, chat),
            (
                "drain while a chat runs there: it goes on to its end, others go elsewhere",
                format!("orchd nodes drain {some}\norchd nodes undrain {some}"),
            ),
            ("watch the fleet", "orchd nodes list -w".to_owned()),
            (
                &*format!("kill an agent: {name} is Offline after {timeout} s (30 s by default)"),
                format!("kill -9 {agent}"),
            ),
            (
                "kill an engine, in mid-chat too; or the control plane, which forgets nothing",
                format!("kill -9 {engine}\nkill -9 {}", self.server_pid),
            ),
            ("any OpenAI client, here Python's", python),
        ] {
            let dim = Style::new().dimmed();
            let _ = write!(text, "\n  {dim}# {what}{dim:#}\n");
            for (at, line) in commands.lines().enumerate() {
                let indent = if at > 0 && line.starts_with('-') {
                    "    "
                } else {
                    "  "
                };
                let _ = writeln!(text, "{indent}{line}");
            }
        }
        text
    }

    fn end(&self) -> String {
        let bold = Style::new().bold();
        format!(
            "Logs: {}/*.log\n{bold}Ctrl-C ends it all{bold:#}, but for what you have started again yourself.\n\
             Here is what happens meanwhile:\n\n",
            self.logs
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(nodes: u32) -> Page {
        let node = |number| Node {
            name: format!("node-{number}"),
            agent_pid: 4_194_300,
            agent: "127.0.0.1:41237".into(),
            engine_pid: 4_194_301,
            engine: "127.0.0.1:41238".into(),
        };
        Page {
            typed: "orchd".into(),
            why: "for real answers: --llama-server FILE --model FILE.gguf".into(),
            built_in: true,
            elsewhere: false,
            url: "http://127.0.0.1:8080".into(),
            server_pid: 4_194_299,
            nodes: (1..=nodes).map(node).collect(),
            logs: "/tmp/orchd-demo-0123456789abcdef".into(),
        }
    }

    fn plain(page: &Page) -> String {
        anstream::adapter::strip_str(&page.text()).to_string()
    }

    #[test]
    fn the_page_fits_80_columns() {
        let mut other = page(16);
        other.built_in = false;
        for page in [page(1), page(3), other] {
            let text = plain(&page);
            for line in text.lines() {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
    }

    #[test]
    fn what_a_shell_does_not_know_is_told_to_it_first() {
        let text = plain(&page(3));
        assert!(
            !text.contains("alias") && !text.contains("ORCHD_SERVER"),
            "{text}"
        );
        let mut away = page(3);
        away.typed = "/home/me/orchd/target/release/orchd".into();
        away.elsewhere = true;
        away.url = "http://127.0.0.1:9000".into();
        let text = plain(&away);
        assert!(
            text.contains(
                "\n\n  alias orchd=/home/me/orchd/target/release/orchd\n  export ORCHD_SERVER=http://127.0.0.1:9000\n\n"
            ),
            "{text}"
        );
        assert!(text.contains("curl -N http://127.0.0.1:9000/v1/chat/completions"));
    }

    #[test]
    fn what_is_to_be_pasted_is_whole_and_what_outlives_the_demo_is_told() {
        let text = plain(&page(3));
        let python = "\n  import openai\n  client = openai.OpenAI(base_url=\"http://127.0.0.1:8080/v1\", api_key=\"none\")\n";
        assert!(text.contains(python), "{text}");
        assert!(text.contains("but for what you have started again yourself"));
    }

    #[test]
    fn one_node_is_enough_for_everything_on_the_page() {
        let text = plain(&page(1));
        assert!(text.contains("orchd nodes drain node-1\n"), "{text}");
        assert!(text.contains("and 1 node run"), "{text}");
    }
}
