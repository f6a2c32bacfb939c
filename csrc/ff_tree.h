/* ff_tree.h: kill a child of this process and everything below it.
 *
 * The child has to be a subreaper (Linux): what loses its parent below it becomes its own child, so that nobody gets
 * away as long as it lives. It is stopped, what is below it is killed, and only when nobody is left it is killed too.
 *
 *   every round:  stop it, and those below it, parents first: who is stopped has no more children
 *                 kill those below it, children first
 *                 nobody was found, and it had stopped before the search: kill it
 *
 * What a child has left behind and then ends itself is init's. The server could adopt it only as a subreaper: it would
 * get what all its other children leave behind as well, would have to reap that, and could not tell whose it was.
 *
 * A pid is used for nothing before it is known whose child it is: it may have become another process's. Where the
 * system does not tell who is below a process, that process alone is killed.
 */
#ifndef FF_TREE_H
#define FF_TREE_H

#include <stdbool.h>
#include <sys/types.h>

#define FF_TREE_BATCH 64 /* processes that one round stops and kills */
#define FF_TREE_ROUNDS \
    1000                   /* the last one kills the child, whatever is below it; then it is left to itself */
#define FF_TREE_ROUND_MS 2 /* between two rounds: time to die and to be adopted */

struct ff_tree {
    pid_t root; /* a child of this process */
    unsigned rounds;
    bool is_bare; /* nobody is below it any more: it has been killed itself */
};

/* Become the one that adopts whoever below this process loses its parent. */
void ff_tree_become_root(void);

/* One round, which waits for nobody. True when the root is dead, or cannot be killed. */
bool ff_tree_kill(struct ff_tree *tree);

#endif
