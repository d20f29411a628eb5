
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'orchd' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'orchd'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'orchd' {
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('agent', 'agent', [CompletionResultType]::ParameterValue, 'Run on a GPU host: report its engines and relay to them')
            [CompletionResult]::new('nodes', 'nodes', [CompletionResultType]::ParameterValue, 'Show and manage the nodes of the fleet')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            [CompletionResult]::new('serve', 'serve', [CompletionResultType]::ParameterValue, 'Run the control plane and its OpenAI-compatible gateway')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print a completion script for a shell')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Print the manual page, or write all of them')
            break
        }
        'orchd;agent' {
            [CompletionResult]::new('--engine', '--engine', [CompletionResultType]::ParameterName, 'Engine to report and relay to; repeatable. The first one without a name is called `default`, the others HOST-PORT')
            [CompletionResult]::new('--node-id', '--node-id', [CompletionResultType]::ParameterName, 'Name of this node in the fleet [default: the host name]')
            [CompletionResult]::new('--machine-id', '--machine-id', [CompletionResultType]::ParameterName, 'What tells this machine from another one that claims the same name [default: the system''s machine id]')
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Address and port to listen on')
            [CompletionResult]::new('--advertise', '--advertise', [CompletionResultType]::ParameterName, 'Address under which the gateway reaches this agent [default: the listen address; for a wildcard such as 0.0.0.0, the address this host uses towards the control plane]')
            [CompletionResult]::new('--label', '--label', [CompletionResultType]::ParameterName, 'Label of this node; repeatable')
            [CompletionResult]::new('--gpu-fixture', '--gpu-fixture', [CompletionResultType]::ParameterName, 'Read the GPUs from this file instead of from the driver, for tests')
            [CompletionResult]::new('--shutdown-grace', '--shutdown-grace', [CompletionResultType]::ParameterName, 'How long running requests may go on after a stop signal (0s to 24h)')
            [CompletionResult]::new('--tls-cert', '--tls-cert', [CompletionResultType]::ParameterName, 'File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it changes')
            [CompletionResult]::new('--tls-key', '--tls-key', [CompletionResultType]::ParameterName, 'File with its private key (PEM)')
            [CompletionResult]::new('--max-connections', '--max-connections', [CompletionResultType]::ParameterName, 'Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of the files this process may open, at most 65536]')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;nodes' {
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help')
            [CompletionResult]::new('list', 'list', [CompletionResultType]::ParameterValue, 'List the nodes of the fleet')
            [CompletionResult]::new('register', 'register', [CompletionResultType]::ParameterValue, 'Announce a node whose agent will come')
            [CompletionResult]::new('drain', 'drain', [CompletionResultType]::ParameterValue, 'Give nodes no new requests, and wait until they run none')
            [CompletionResult]::new('undrain', 'undrain', [CompletionResultType]::ParameterValue, 'Let nodes take requests again')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'orchd;nodes;list' {
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'How to print the list')
            [CompletionResult]::new('--output', '--output', [CompletionResultType]::ParameterName, 'How to print the list')
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only nodes of these statuses; repeatable, or separated by commas')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('--no-headers', '--no-headers', [CompletionResultType]::ParameterName, 'Leave out the line of column names')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;nodes;register' {
            [CompletionResult]::new('--address', '--address', [CompletionResultType]::ParameterName, 'Where its agent will listen')
            [CompletionResult]::new('--machine-id', '--machine-id', [CompletionResultType]::ParameterName, 'Machine id its agent will give; an agent with another one takes the name over only after the node timeout [default: the name of the node]')
            [CompletionResult]::new('--label', '--label', [CompletionResultType]::ParameterName, 'Label of the node; repeatable')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;nodes;drain' {
            [CompletionResult]::new('--reason', '--reason', [CompletionResultType]::ParameterName, 'Why, for those who look at the node later')
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'Stop waiting after this long; the drain goes on (1ms to 24h) [default: wait for ever]')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('--detach', '--detach', [CompletionResultType]::ParameterName, 'Do not wait')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;nodes;undrain' {
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;nodes;help' {
            [CompletionResult]::new('list', 'list', [CompletionResultType]::ParameterValue, 'List the nodes of the fleet')
            [CompletionResult]::new('register', 'register', [CompletionResultType]::ParameterValue, 'Announce a node whose agent will come')
            [CompletionResult]::new('drain', 'drain', [CompletionResultType]::ParameterValue, 'Give nodes no new requests, and wait until they run none')
            [CompletionResult]::new('undrain', 'undrain', [CompletionResultType]::ParameterValue, 'Let nodes take requests again')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'orchd;nodes;help;list' {
            break
        }
        'orchd;nodes;help;register' {
            break
        }
        'orchd;nodes;help;drain' {
            break
        }
        'orchd;nodes;help;undrain' {
            break
        }
        'orchd;nodes;help;help' {
            break
        }
        'orchd;help' {
            [CompletionResult]::new('serve', 'serve', [CompletionResultType]::ParameterValue, 'Run the control plane and its OpenAI-compatible gateway')
            [CompletionResult]::new('agent', 'agent', [CompletionResultType]::ParameterValue, 'Run on a GPU host: report its engines and relay to them')
            [CompletionResult]::new('nodes', 'nodes', [CompletionResultType]::ParameterValue, 'Show and manage the nodes of the fleet')
            [CompletionResult]::new('completions', 'completions', [CompletionResultType]::ParameterValue, 'Print a completion script for a shell')
            [CompletionResult]::new('man', 'man', [CompletionResultType]::ParameterValue, 'Print the manual page, or write all of them')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'orchd;help;serve' {
            break
        }
        'orchd;help;agent' {
            break
        }
        'orchd;help;nodes' {
            [CompletionResult]::new('list', 'list', [CompletionResultType]::ParameterValue, 'List the nodes of the fleet')
            [CompletionResult]::new('register', 'register', [CompletionResultType]::ParameterValue, 'Announce a node whose agent will come')
            [CompletionResult]::new('drain', 'drain', [CompletionResultType]::ParameterValue, 'Give nodes no new requests, and wait until they run none')
            [CompletionResult]::new('undrain', 'undrain', [CompletionResultType]::ParameterValue, 'Let nodes take requests again')
            break
        }
        'orchd;help;nodes;list' {
            break
        }
        'orchd;help;nodes;register' {
            break
        }
        'orchd;help;nodes;drain' {
            break
        }
        'orchd;help;nodes;undrain' {
            break
        }
        'orchd;help;completions' {
            break
        }
        'orchd;help;man' {
            break
        }
        'orchd;help;help' {
            break
        }
        'orchd;serve' {
            [CompletionResult]::new('--cloud', '--cloud', [CompletionResultType]::ParameterName, 'Keep a registry of nodes (the CLOUD profile) instead of serving this machine alone (HOME)')
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Address and port to listen on')
            [CompletionResult]::new('--engine', '--engine', [CompletionResultType]::ParameterName, 'Engine of this machine, HOME profile only; repeatable. The first one without a name is called `default`, the others HOST-PORT')
            [CompletionResult]::new('--node-timeout', '--node-timeout', [CompletionResultType]::ParameterName, 'Silence after which a node counts as Offline (1s to 1h)')
            [CompletionResult]::new('--stale-check-interval', '--stale-check-interval', [CompletionResultType]::ParameterName, 'How often to look for silent nodes (1s to 1m)')
            [CompletionResult]::new('--heartbeat-interval', '--heartbeat-interval', [CompletionResultType]::ParameterName, 'How often agents are told to send a heartbeat (10ms to a third of the node timeout) [default: 10s, or a third of the node timeout when that is less]')
            [CompletionResult]::new('--restart-grace', '--restart-grace', [CompletionResultType]::ParameterName, 'How long nodes known from before a restart may still be routed to before they are heard (0s to 1h) [default: 30s, or the node timeout when that is more]')
            [CompletionResult]::new('--admission-capacity', '--admission-capacity', [CompletionResultType]::ParameterName, 'Requests that may wait for one model; more are refused (0 to 1000000)')
            [CompletionResult]::new('--queue-timeout', '--queue-timeout', [CompletionResultType]::ParameterName, 'How long a request waits for a free slot (1ms to 24h)')
            [CompletionResult]::new('--no-pool-wait', '--no-pool-wait', [CompletionResultType]::ParameterName, 'How long a request waits for a known model that no engine serves at the moment (0s to 24h)')
            [CompletionResult]::new('--shutdown-grace', '--shutdown-grace', [CompletionResultType]::ParameterName, 'How long running requests may go on after a stop signal (0s to 24h)')
            [CompletionResult]::new('--state-dir', '--state-dir', [CompletionResultType]::ParameterName, 'Directory for what must survive a restart [default: orchd''s state directory of the user]')
            [CompletionResult]::new('--client-token', '--client-token', [CompletionResultType]::ParameterName, 'Token of clients, which opens /v1 and nothing else. Set the variable rather than the option')
            [CompletionResult]::new('--client-token-file', '--client-token-file', [CompletionResultType]::ParameterName, 'File with tokens of clients, one a line; all are accepted, and it is read again when it changes')
            [CompletionResult]::new('--tls-cert', '--tls-cert', [CompletionResultType]::ParameterName, 'File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it changes')
            [CompletionResult]::new('--tls-key', '--tls-key', [CompletionResultType]::ParameterName, 'File with its private key (PEM)')
            [CompletionResult]::new('--max-connections', '--max-connections', [CompletionResultType]::ParameterName, 'Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of the files this process may open, at most 65536]')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;completions' {
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'orchd;man' {
            [CompletionResult]::new('--dir', '--dir', [CompletionResultType]::ParameterName, 'Write the page of every command into this directory instead of printing one')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Control plane to talk to; several, separated by commas, are tried in turn')
            [CompletionResult]::new('--api-token', '--api-token', [CompletionResultType]::ParameterName, 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read')
            [CompletionResult]::new('--api-token-file', '--api-token-file', [CompletionResultType]::ParameterName, 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes')
            [CompletionResult]::new('--ca', '--ca', [CompletionResultType]::ParameterName, 'File with the certificates (PEM) of authorities to trust besides the system''s, where https:// is spoken')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
