# Sourced by the recipes: `stage NAME COMMAND...` runs a command once and notes its seconds (wall, user, system) in $RUN/stages.
# A recipe that was stopped goes on where it was: finished stages are passed over, and every verb keeps its own half-done work.
# ONLY="answers-base learn-grpo" runs just these stages, for instance beside others of the same run on another core.
stage() {
    local name=$1 seconds
    shift
    if [ -n "${ONLY:-}" ] && [[ " $ONLY " != *" $name "* ]]; then
        return 0
    fi
    mkdir -p "$RUN"
    if grep -qs "^$name " "$RUN/stages"; then
        return 0
    fi
    echo "== $name: $*"
    seconds=$(mktemp)  # stages of one run may be run side by side
    TIMEFORMAT="$name %R %U %S"
    { time "$@" >&3 2>&4; } 3>&1 4>&2 2> "$seconds"
    cat "$seconds" >> "$RUN/stages"
    rm "$seconds"
}
