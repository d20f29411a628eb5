
use builtin;
use str;

set edit:completion:arg-completer[orchd] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'orchd'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'orchd'= {
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand -V 'Print version'
            cand --version 'Print version'
            cand agent 'Run on a GPU host: report its engines and relay to them'
            cand nodes 'Show and manage the nodes of the fleet'
            cand help 'Print this message or the help of the given subcommand(s)'
            cand serve 'Run the control plane and its OpenAI-compatible gateway'
            cand completions 'Print a completion script for a shell'
            cand man 'Print the manual page, or write all of them'
        }
        &'orchd;agent'= {
            cand --engine 'Engine to report and relay to; repeatable. The first one without a name is called `default`, the others HOST-PORT'
            cand --node-id 'Name of this node in the fleet [default: the host name]'
            cand --machine-id 'What tells this machine from another one that claims the same name [default: the system''s machine id]'
            cand --listen 'Address and port to listen on'
            cand --advertise 'Address under which the gateway reaches this agent [default: the listen address; for a wildcard such as 0.0.0.0, the address this host uses towards the control plane]'
            cand --label 'Label of this node; repeatable'
            cand --gpu-fixture 'Read the GPUs from this file instead of from the driver, for tests'
            cand --shutdown-grace 'How long running requests may go on after a stop signal (0s to 24h)'
            cand --tls-cert 'File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it changes'
            cand --tls-key 'File with its private key (PEM)'
            cand --max-connections 'Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of the files this process may open, at most 65536]'
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;nodes'= {
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help'
            cand --help 'Print help'
            cand list 'List the nodes of the fleet'
            cand register 'Announce a node whose agent will come'
            cand drain 'Give nodes no new requests, and wait until they run none'
            cand undrain 'Let nodes take requests again'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'orchd;nodes;list'= {
            cand -o 'How to print the list'
            cand --output 'How to print the list'
            cand --status 'Only nodes of these statuses; repeatable, or separated by commas'
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand --no-headers 'Leave out the line of column names'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;nodes;register'= {
            cand --address 'Where its agent will listen'
            cand --machine-id 'Machine id its agent will give; an agent with another one takes the name over only after the node timeout [default: the name of the node]'
            cand --label 'Label of the node; repeatable'
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;nodes;drain'= {
            cand --reason 'Why, for those who look at the node later'
            cand --timeout 'Stop waiting after this long; the drain goes on (1ms to 24h) [default: wait for ever]'
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand --detach 'Do not wait'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;nodes;undrain'= {
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;nodes;help'= {
            cand list 'List the nodes of the fleet'
            cand register 'Announce a node whose agent will come'
            cand drain 'Give nodes no new requests, and wait until they run none'
            cand undrain 'Let nodes take requests again'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'orchd;nodes;help;list'= {
        }
        &'orchd;nodes;help;register'= {
        }
        &'orchd;nodes;help;drain'= {
        }
        &'orchd;nodes;help;undrain'= {
        }
        &'orchd;nodes;help;help'= {
        }
        &'orchd;help'= {
            cand serve 'Run the control plane and its OpenAI-compatible gateway'
            cand agent 'Run on a GPU host: report its engines and relay to them'
            cand nodes 'Show and manage the nodes of the fleet'
            cand completions 'Print a completion script for a shell'
            cand man 'Print the manual page, or write all of them'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'orchd;help;serve'= {
        }
        &'orchd;help;agent'= {
        }
        &'orchd;help;nodes'= {
            cand list 'List the nodes of the fleet'
            cand register 'Announce a node whose agent will come'
            cand drain 'Give nodes no new requests, and wait until they run none'
            cand undrain 'Let nodes take requests again'
        }
        &'orchd;help;nodes;list'= {
        }
        &'orchd;help;nodes;register'= {
        }
        &'orchd;help;nodes;drain'= {
        }
        &'orchd;help;nodes;undrain'= {
        }
        &'orchd;help;completions'= {
        }
        &'orchd;help;man'= {
        }
        &'orchd;help;help'= {
        }
        &'orchd;serve'= {
            cand --cloud 'Keep a registry of nodes (the CLOUD profile) instead of serving this machine alone (HOME)'
            cand --listen 'Address and port to listen on'
            cand --engine 'Engine of this machine, HOME profile only; repeatable. The first one without a name is called `default`, the others HOST-PORT'
            cand --node-timeout 'Silence after which a node counts as Offline (1s to 1h)'
            cand --stale-check-interval 'How often to look for silent nodes (1s to 1m)'
            cand --heartbeat-interval 'How often agents are told to send a heartbeat (10ms to a third of the node timeout) [default: 10s, or a third of the node timeout when that is less]'
            cand --restart-grace 'How long nodes known from before a restart may still be routed to before they are heard (0s to 1h) [default: 30s, or the node timeout when that is more]'
            cand --admission-capacity 'Requests that may wait for one model; more are refused (0 to 1000000)'
            cand --queue-timeout 'How long a request waits for a free slot (1ms to 24h)'
            cand --no-pool-wait 'How long a request waits for a known model that no engine serves at the moment (0s to 24h)'
            cand --shutdown-grace 'How long running requests may go on after a stop signal (0s to 24h)'
            cand --state-dir 'Directory for what must survive a restart [default: orchd''s state directory of the user]'
            cand --client-token 'Token of clients, which opens /v1 and nothing else. Set the variable rather than the option'
            cand --client-token-file 'File with tokens of clients, one a line; all are accepted, and it is read again when it changes'
            cand --tls-cert 'File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it changes'
            cand --tls-key 'File with its private key (PEM)'
            cand --max-connections 'Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of the files this process may open, at most 65536]'
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;completions'= {
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'orchd;man'= {
            cand --dir 'Write the page of every command into this directory instead of printing one'
            cand --server 'Control plane to talk to; several, separated by commas, are tried in turn'
            cand --api-token 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read'
            cand --api-token-file 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes'
            cand --ca 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
    ]
    $completions[$command]
}
