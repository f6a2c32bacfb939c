/* ff_pidfd.c: a process by descriptor: no reuse of its pid can make it another one. */
#define _GNU_SOURCE

#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "ff_abi.h"
#include "ff_util.h"

int ff_pidfd_open(int pid)
{
#ifdef SYS_pidfd_open
    int fd = (int)syscall(SYS_pidfd_open, pid, 0u);

    return fd < 0 ? -errno : fd;
#else
    (void)pid;
    return -ENOSYS;
#endif
}

#ifdef __linux__

/* struct pidfd_info and its ioctl as of Linux 6.15, whose headers few systems have. */
struct pidfd_info {
    uint64_t mask;
    uint64_t cgroup_id;
    uint32_t pid, tgid, ppid;
    uint32_t ruid, rgid, euid, egid, suid, sgid, fsuid, fsgid;
    int32_t exit_status; /* as wait(2) gives it */
};

#define PIDFD_INFO_HAS_EXIT (1u << 3)
#define PIDFD_GET_INFO_IOCTL _IOWR(0xFF, 11, struct pidfd_info)

int ff_pidfd_exit_code(int pidfd, int *ret_code)
{
    struct pidfd_info info = {.mask = PIDFD_INFO_HAS_EXIT};

    if (ioctl(pidfd, PIDFD_GET_INFO_IOCTL, &info) < 0) {
        if (errno == ESRCH)
            return -EAGAIN;
        return errno == ENOTTY || errno == EINVAL ? -ENOSYS : -errno;
    }
    if (!(info.mask & PIDFD_INFO_HAS_EXIT))
        return -EAGAIN;
    *ret_code = WIFSIGNALED(info.exit_status) ? -WTERMSIG(info.exit_status) : WEXITSTATUS(info.exit_status);
    return 0;
}

#else

int ff_pidfd_exit_code(int pidfd, int *ret_code)
{
    (void)pidfd;
    (void)ret_code;
    return -ENOSYS;
}

#endif
