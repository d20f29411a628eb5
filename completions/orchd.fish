# What orchd completes, besides the options of each and the names of nodes:
#   orchd serve
#   orchd agent
#   orchd probe
#   orchd nodes list|get|register|drain|undrain|remove|wait
#   orchd pools list
#   orchd models list
#   orchd events
#   orchd config show|check|unit
#   orchd demo
#   orchd completions
#   orchd man

complete --keep-order --exclusive --command orchd --arguments "(COMPLETE=fish orchd -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token))"
