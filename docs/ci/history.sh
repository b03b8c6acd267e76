#!/bin/sh
# The history of runs, kept between CI jobs on a branch of its own that shares no commit with the code.
#
#   history.sh fetch   before judging: puts history.jsonl and the saved queries (state/) into results/
#   history.sh keep    after judging: adds what results/ has now to the branch, as one commit, and pushes it
#
# HISTORY_BRANCH  the branch (default: harness-history)
# HISTORY_REMOTE  where it is fetched from and pushed to (default: origin)
# Jobs that keep must not run at the same time: give them a concurrency group (GitHub) or a resource group (GitLab).
set -eu
branch=${HISTORY_BRANCH:-harness-history}
remote=${HISTORY_REMOTE:-origin}

fetch() {
    git ls-remote --exit-code --heads "$remote" "$branch" >/dev/null 2>&1 || {
        [ "$?" -eq 2 ] && return 1  # there is no such branch yet
        echo "history.sh: $remote cannot be read" >&2
        exit 1
    }
    git fetch --quiet --depth 1 "$remote" "refs/heads/$branch"
}

case "${1:-}" in
fetch)
    if fetch; then
        mkdir -p results
        git archive FETCH_HEAD | tar -x -C results
    else
        echo "history.sh: no branch $branch yet; the history begins with this run" >&2
    fi
    ;;
keep)
    [ -f results/history.jsonl ] || { echo "history.sh: no run was judged, so there is nothing to keep" >&2; exit 0; }
    parent=
    if fetch; then parent=$(git rev-parse FETCH_HEAD); fi
    GIT_INDEX_FILE=$(mktemp -u)
    export GIT_INDEX_FILE
    trap 'rm -f "$GIT_INDEX_FILE"' EXIT
    git_dir=$(git rev-parse --absolute-git-dir)
    cd results
    git --git-dir "$git_dir" --work-tree . add --force history.jsonl
    if [ -d state ]; then git --git-dir "$git_dir" --work-tree . add --force state; fi
    tree=$(git --git-dir "$git_dir" write-tree)
    commit=$(git --git-dir "$git_dir" commit-tree "$tree" ${parent:+-p "$parent"} -m "${2:-A run}")
    git --git-dir "$git_dir" push --quiet "$remote" "$commit:refs/heads/$branch"
    ;;
*)
    echo "usage: history.sh fetch | keep [MESSAGE]" >&2
    exit 2
    ;;
esac
