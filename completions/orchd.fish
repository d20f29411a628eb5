complete --keep-order --exclusive --command orchd --arguments "(COMPLETE=fish orchd -- (commandline --current-process --tokenize --cut-at-cursor) (commandline --current-token))"
