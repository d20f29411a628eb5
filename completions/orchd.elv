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

set edit:completion:arg-completer[orchd] = { |@words|
    var index = (count $words)
    set index = (- $index 1)

    put (env _CLAP_IFS="\n" _CLAP_COMPLETE_INDEX=(to-string $index) COMPLETE="elvish" orchd -- $@words) | to-lines
}

