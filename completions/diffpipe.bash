# bash completion for diffpipe: source this file, or install it as diffpipe in bash-completion's folder.
_diffpipe() {
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        [[ -n $line ]] && COMPREPLY+=("${line%%$'\t'*}")
    done < <(COLUMNS=500 _TYPER_COMPLETE_FISH_ACTION=get-args _DIFFPIPE_COMPLETE=complete_fish \
        _TYPER_COMPLETE_ARGS="${COMP_LINE:0:COMP_POINT}" diffpipe 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && $COMPREPLY == *= ]]; then compopt -o nospace 2>/dev/null; fi
}

complete -o bashdefault -o default -F _diffpipe diffpipe
