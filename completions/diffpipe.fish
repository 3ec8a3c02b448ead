# fish completion for diffpipe: install this file in ~/.config/fish/completions.
function __diffpipe_ask
    set -l line (commandline -cp | string collect)
    set -g __diffpipe_found (env COLUMNS=500 _TYPER_COMPLETE_FISH_ACTION=get-args _DIFFPIPE_COMPLETE=complete_fish \
        _TYPER_COMPLETE_ARGS=$line diffpipe 2>/dev/null | string match -r '.+')
    set -l flag (commandline -ct | string match -r -- '^--[^=]*=')
    and set -g __diffpipe_found $flag$__diffpipe_found
    test (count $__diffpipe_found) -gt 0
end

complete -c diffpipe --no-files --keep-order -n __diffpipe_ask -a '$__diffpipe_found'
