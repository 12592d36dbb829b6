# Sourced by the recipes: `stage NAME COMMAND...` runs a command once and notes its seconds (wall, user, system) in $RUN/stages;
# those of one that was stopped stand there as NAME-stopped.
# A recipe that was stopped goes on where it was: finished stages are passed over, and every verb keeps its own half-done work.
# ONLY="answers-base learn-grpo" runs just these stages, for instance beside others of the same run on another core.
stage() {
    local name=$1 seconds status=0
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
    TIMEFORMAT="%R %U %S"
    { time "$@" >&3 2>&4 || status=$?; } 3>&1 4>&2 2> "$seconds"
    if [ "$status" != 0 ]; then
        name+=-stopped
    fi
    echo "$name $(tail -n 1 "$seconds")" >> "$RUN/stages"
    rm "$seconds"
    return "$status"
}
