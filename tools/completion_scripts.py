"""The shell completion scripts, which generate_docs.py writes to completions/."""

from __future__ import annotations

# The shells ask the program in one way, the one Typer made for fish: a line a completion, "value<TAB>help", and nothing
# where the shell should complete file names. Unlike Typer's own scripts these take --flag=VALUE, evaluate no text, and
# ask once. COLUMNS: Typer folds help at the terminal's width, and each line would be a completion.
ASK = "COLUMNS=500 _TYPER_COMPLETE_FISH_ACTION=get-args {variable}=complete_fish"

BASH = """\
# bash completion for {program}: source this file, or install it as {program} in bash-completion's folder.
_{program}() {{
    local line
    COMPREPLY=()
    while IFS= read -r line; do
        [[ -n $line ]] && COMPREPLY+=("${{line%%$'\\t'*}}")
    done < <({ask} \\
        _TYPER_COMPLETE_ARGS="${{COMP_LINE:0:COMP_POINT}}" {program} 2>/dev/null)
    if [[ ${{#COMPREPLY[@]}} -eq 1 && $COMPREPLY == *= ]]; then compopt -o nospace 2>/dev/null; fi
}}

complete -o bashdefault -o default -F _{program} {program}
"""

ZSH = """\
#compdef {program}
# zsh completion for {program}: install this file as _{program} in a folder of $fpath, or source it after compinit.
_{program}() {{
    local line value
    local -a words_with_help open_words
    for line in "${{(@f)$({ask} \\
        _TYPER_COMPLETE_ARGS="${{(j: :)words[1,CURRENT-1]}} $PREFIX" {program} 2>/dev/null)}}"; do
        value=${{${{line%%$'\\t'*}}//:/\\\\:}}
        if [[ $value == *= ]]; then
            open_words+=("$value")
        elif [[ -n $value ]]; then
            [[ $line == *$'\\t'* ]] && value+=":${{line#*$'\\t'}}"
            words_with_help+=("$value")
        fi
    done
    if (( $#open_words )); then
        compadd -S '' -a open_words
    elif (( $#words_with_help )); then
        [[ $PREFIX == --*=* ]] && compset -P '*='
        _describe -V '{program}' words_with_help
    else
        [[ $PREFIX == *=* ]] && compset -P '*='
        _files
    fi
}}

if [[ $funcstack[1] == _{program} ]]; then _{program} "$@"; else compdef _{program} {program}; fi
"""

FISH = """\
# fish completion for {program}: install this file in ~/.config/fish/completions.
function __{program}_ask
    set -l line (commandline -cp | string collect)
    set -g __{program}_found (env {ask} \\
        _TYPER_COMPLETE_ARGS=$line {program} 2>/dev/null | string match -r '.+')
    set -l flag (commandline -ct | string match -r -- '^--[^=]*=')
    and set -g __{program}_found $flag$__{program}_found
    test (count $__{program}_found) -gt 0
end

complete -c {program} --no-files --keep-order -n __{program}_ask -a '$__{program}_found'
"""

FILES = {"diffpipe.bash": BASH, "_diffpipe": ZSH, "diffpipe.fish": FISH}


def scripts(program: str, variable: str) -> dict[str, str]:
    """File name -> script, for a program that Typer completes when the environment has `variable`."""
    values = {"program": program, "ask": ASK.format(variable=variable)}
    return {name: template.format(**values) for name, template in FILES.items()}
