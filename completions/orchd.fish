# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_orchd_global_optspecs
    string join \n server= api-token= api-token-file= ca= h/help V/version
end

function __fish_orchd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_orchd_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_orchd_using_subcommand
    set -l cmd (__fish_orchd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c orchd -n "__fish_orchd_needs_command" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_needs_command" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_needs_command" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_needs_command" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_needs_command" -s V -l version -d 'Print version'
complete -c orchd -n "__fish_orchd_needs_command" -f -a "agent" -d 'Run on a GPU host: report its engines and relay to them'
complete -c orchd -n "__fish_orchd_needs_command" -f -a "nodes" -d 'Show and manage the nodes of the fleet'
complete -c orchd -n "__fish_orchd_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c orchd -n "__fish_orchd_needs_command" -f -a "serve" -d 'Run the control plane and its OpenAI-compatible gateway'
complete -c orchd -n "__fish_orchd_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c orchd -n "__fish_orchd_needs_command" -f -a "man" -d 'Print the manual page, or write all of them'
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l engine -d 'Engine to report and relay to; repeatable. The first one without a name is called `default`, the others HOST-PORT' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l node-id -d 'Name of this node in the fleet [default: the host name]' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l machine-id -d 'What tells this machine from another one that claims the same name [default: the system\'s machine id]' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l listen -d 'Address and port to listen on' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l advertise -d 'Address under which the gateway reaches this agent [default: the listen address; for a wildcard such as 0.0.0.0, the address this host uses towards the control plane]' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l label -d 'Label of this node; repeatable' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l gpu-fixture -d 'Read the GPUs from this file instead of from the driver, for tests' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l shutdown-grace -d 'How long running requests may go on after a stop signal (0s to 24h)' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l tls-cert -d 'File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l tls-key -d 'File with its private key (PEM)' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l max-connections -d 'Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of the files this process may open, at most 65536]' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand agent" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand agent" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -s h -l help -d 'Print help'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -f -a "list" -d 'List the nodes of the fleet'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -f -a "register" -d 'Announce a node whose agent will come'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -f -a "drain" -d 'Give nodes no new requests, and wait until they run none'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -f -a "undrain" -d 'Let nodes take requests again'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and not __fish_seen_subcommand_from list register drain undrain help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -s o -l output -d 'How to print the list' -r -f -a "table\t'Columns that fit the terminal'
wide\t'All columns, however wide'
json\t'The control plane\'s answer as JSON'
yaml\t'The control plane\'s answer as YAML'
name\t'Names only, one a line'"
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -l status -d 'Only nodes of these statuses; repeatable, or separated by commas' -r -f -a "Offline\t''
Failed\t''
Draining\t''
Online\t''
Registering\t''"
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -l no-headers -d 'Leave out the line of column names'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l address -d 'Where its agent will listen' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l machine-id -d 'Machine id its agent will give; an agent with another one takes the name over only after the node timeout [default: the name of the node]' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l label -d 'Label of the node; repeatable' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from register" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l reason -d 'Why, for those who look at the node later' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l timeout -d 'Stop waiting after this long; the drain goes on (1ms to 24h) [default: wait for ever]' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -l detach -d 'Do not wait'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from drain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from undrain" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from undrain" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from undrain" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from undrain" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from undrain" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from help" -f -a "list" -d 'List the nodes of the fleet'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from help" -f -a "register" -d 'Announce a node whose agent will come'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from help" -f -a "drain" -d 'Give nodes no new requests, and wait until they run none'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from help" -f -a "undrain" -d 'Let nodes take requests again'
complete -c orchd -n "__fish_orchd_using_subcommand nodes; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c orchd -n "__fish_orchd_using_subcommand help; and not __fish_seen_subcommand_from serve agent nodes completions man help" -f -a "serve" -d 'Run the control plane and its OpenAI-compatible gateway'
complete -c orchd -n "__fish_orchd_using_subcommand help; and not __fish_seen_subcommand_from serve agent nodes completions man help" -f -a "agent" -d 'Run on a GPU host: report its engines and relay to them'
complete -c orchd -n "__fish_orchd_using_subcommand help; and not __fish_seen_subcommand_from serve agent nodes completions man help" -f -a "nodes" -d 'Show and manage the nodes of the fleet'
complete -c orchd -n "__fish_orchd_using_subcommand help; and not __fish_seen_subcommand_from serve agent nodes completions man help" -f -a "completions" -d 'Print a completion script for a shell'
complete -c orchd -n "__fish_orchd_using_subcommand help; and not __fish_seen_subcommand_from serve agent nodes completions man help" -f -a "man" -d 'Print the manual page, or write all of them'
complete -c orchd -n "__fish_orchd_using_subcommand help; and not __fish_seen_subcommand_from serve agent nodes completions man help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c orchd -n "__fish_orchd_using_subcommand help; and __fish_seen_subcommand_from nodes" -f -a "list" -d 'List the nodes of the fleet'
complete -c orchd -n "__fish_orchd_using_subcommand help; and __fish_seen_subcommand_from nodes" -f -a "register" -d 'Announce a node whose agent will come'
complete -c orchd -n "__fish_orchd_using_subcommand help; and __fish_seen_subcommand_from nodes" -f -a "drain" -d 'Give nodes no new requests, and wait until they run none'
complete -c orchd -n "__fish_orchd_using_subcommand help; and __fish_seen_subcommand_from nodes" -f -a "undrain" -d 'Let nodes take requests again'
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l cloud -d 'Keep a registry of nodes (the CLOUD profile) instead of serving this machine alone (HOME)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l listen -d 'Address and port to listen on' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l engine -d 'Engine of this machine, HOME profile only; repeatable. The first one without a name is called `default`, the others HOST-PORT' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l node-timeout -d 'Silence after which a node counts as Offline (1s to 1h)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l stale-check-interval -d 'How often to look for silent nodes (1s to 1m)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l heartbeat-interval -d 'How often agents are told to send a heartbeat (10ms to a third of the node timeout) [default: 10s, or a third of the node timeout when that is less]' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l restart-grace -d 'How long nodes known from before a restart may still be routed to before they are heard (0s to 1h) [default: 30s, or the node timeout when that is more]' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l admission-capacity -d 'Requests that may wait for one model; more are refused (0 to 1000000)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l queue-timeout -d 'How long a request waits for a free slot (1ms to 24h)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l no-pool-wait -d 'How long a request waits for a known model that no engine serves at the moment (0s to 24h)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l shutdown-grace -d 'How long running requests may go on after a stop signal (0s to 24h)' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l state-dir -d 'Directory for what must survive a restart [default: orchd\'s state directory of the user]' -r -f -a "(__fish_complete_directories)"
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l client-token -d 'Token of clients, which opens /v1 and nothing else. Set the variable rather than the option' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l client-token-file -d 'File with tokens of clients, one a line; all are accepted, and it is read again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l tls-cert -d 'File with the certificate (PEM) to speak TLS with, and those between it and its authority; read again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l tls-key -d 'File with its private key (PEM)' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l max-connections -d 'Connections at one time; beyond, those that idle for the longest time are closed (16 to 1000000) [default: half of the files this process may open, at most 65536]' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand serve" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand completions" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand completions" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand completions" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand completions" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c orchd -n "__fish_orchd_using_subcommand man" -l dir -d 'Write the page of every command into this directory instead of printing one' -r -f -a "(__fish_complete_directories)"
complete -c orchd -n "__fish_orchd_using_subcommand man" -l server -d 'Control plane to talk to; several, separated by commas, are tried in turn' -r
complete -c orchd -n "__fish_orchd_using_subcommand man" -l api-token -d 'Token of the control plane: commands and agents show it, `serve` and `agent` ask for it. Set the variable (or its other name, LLORCH_API_TOKEN) rather than the option, which others on this machine can read' -r
complete -c orchd -n "__fish_orchd_using_subcommand man" -l api-token-file -d 'File with that token. It may hold several, one a line: `serve` and `agent` accept all of them and show the first, and read the file again when it changes' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand man" -l ca -d 'File with the certificates (PEM) of authorities to trust besides the system\'s, where https:// is spoken' -r -F
complete -c orchd -n "__fish_orchd_using_subcommand man" -s h -l help -d 'Print help (see more with \'--help\')'
