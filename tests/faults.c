/* Faults under the calls by which a process changes files, for tests/faults.py. LD_PRELOAD puts these functions in
 * front of libc's, so that they see what Python does and what SQLite does.
 *
 * Only calls that would change something under one folder count. The n-th of them can kill the process, before it or
 * in the middle of its bytes, or fail; each can be written to a log, from which a test rebuilds what a power cut
 * would have left. The log is a `struct record` for each call, followed by its two names and its bytes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

_Static_assert(sizeof(off_t) == 8 && sizeof(long) == 8, "off_t and off64_t must be the same");

/* These numbers are those of tests/faults.py. */
enum kind { CREATE, MKDIR, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MARK };
enum mode { WATCH, KILL, TEAR, FULL, SHORT, BROKEN_SYNC };

struct record {
    int64_t kind, grows, inode, offset, name_size, other_size, data_size;
};

static struct {
    int armed, mode, log, space_ran_out;
    long at, calls;
    size_t folder_size;
    char folder[PATH_MAX];
} plan = {.log = -1};
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void log_all(const void *data, size_t size)
{
    for (const char *next = data; size > 0;) {
        ssize_t written = syscall(SYS_write, plan.log, next, size);
        if (written < 0)
            abort();
        next += written;
        size -= (size_t)written;
    }
}

static void log_call(enum kind kind, int grows, ino_t inode, off_t offset, const char *name, const char *other,
                     const void *data, size_t size)
{
    if (plan.log < 0)
        return;
    struct record record = {kind, grows, (int64_t)inode, offset, (int64_t)strlen(name), (int64_t)strlen(other),
                            (int64_t)size};
    log_all(&record, sizeof record);
    log_all(name, strlen(name));
    log_all(other, strlen(other));
    log_all(data, size);
}

/* Starts counting the calls under `folder` (absolute, without links) from 0. Call number `at` is where it happens. */
void faults_arm(const char *folder, int mode, long at, int log)
{
    plan.folder_size = strlen(folder);
    memcpy(plan.folder, folder, plan.folder_size + 1);
    plan.mode = mode;
    plan.at = at;
    plan.log = log;
    plan.calls = 0;
    plan.space_ran_out = 0;
    plan.armed = 1;
}

/* Stops the faults and the log; returns how many calls there were. */
long faults_disarm(void)
{
    plan.armed = 0;
    return plan.calls;
}

/* Puts a word of the caller into the log. */
void faults_mark(const char *name)
{
    pthread_mutex_lock(&one_at_a_time);
    log_call(MARK, 0, 0, 0, name, "", "", 0);
    pthread_mutex_unlock(&one_at_a_time);
}

static int watched(const char *path)
{
    return strncmp(path, plan.folder, plan.folder_size) == 0 &&
           (path[plan.folder_size] == '/' || path[plan.folder_size] == '\0');
}

static int path_of(int fd, char *path)
{
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, PATH_MAX - 1);
    if (size < 0)
        return 0;
    path[size] = '\0';
    return 1;
}

static int watched_fd(int fd, char *path)
{
    return plan.armed && path_of(fd, path) && watched(path);
}

/* The absolute path of `name` as seen from the folder `fd`; whether it is watched. */
static int watched_name(int fd, const char *name, char *path)
{
    if (!plan.armed)
        return 0;
    if (name[0] == '/') {
        snprintf(path, PATH_MAX, "%s", name);
    } else {
        if (fd == AT_FDCWD ? getcwd(path, PATH_MAX) == NULL : !path_of(fd, path))
            return 0;
        size_t size = strlen(path);
        snprintf(path + size, PATH_MAX - size, "/%s", name);
    }
    return watched(path);
}

enum verdict { GO_ON, HALF, FAIL };

/* Counts a call and says what becomes of it. The caller holds the mutex. */
static enum verdict meet(enum kind kind, int grows, size_t size)
{
    long number = plan.calls++;
    switch (plan.mode) {
    case KILL:
        if (number == plan.at)
            die();
        return GO_ON;
    case TEAR:
        return number == plan.at ? HALF : GO_ON;
    case FULL:
    case SHORT:
        if (number < plan.at || !grows)
            return GO_ON;
        if (plan.mode == SHORT && !plan.space_ran_out && kind == WRITE && size > 1) {
            plan.space_ran_out = 1;
            return HALF;
        }
        plan.space_ran_out = 1;
        errno = ENOSPC;
        return FAIL;
    case BROKEN_SYNC:
        if (number != plan.at || kind != SYNC)
            return GO_ON;
        errno = EIO;
        return FAIL;
    default:
        return GO_ON;
    }
}

/* Bytes into a file, at its position where `offset` is -1. */
static ssize_t put(int fd, const void *data, size_t size, off_t offset)
{
    return offset < 0 ? syscall(SYS_write, fd, data, size) : syscall(SYS_pwrite64, fd, data, size, offset);
}

static ssize_t write_at(int fd, const void *data, size_t size, off_t offset)
{
    char path[PATH_MAX];
    struct stat file;
    if (!watched_fd(fd, path) || fstat(fd, &file) != 0)
        return put(fd, data, size, offset);
    pthread_mutex_lock(&one_at_a_time);
    off_t start = offset >= 0 ? offset : fcntl(fd, F_GETFL) & O_APPEND ? file.st_size : lseek(fd, 0, SEEK_CUR);
    int grows = start + (off_t)size > file.st_size;
    ssize_t written = -1;
    switch (meet(WRITE, grows, size)) {
    case FAIL:
        break;
    case HALF:
        size /= 2; /* fall through */
    case GO_ON:
        written = put(fd, data, size, offset);
        if (plan.mode == TEAR && plan.calls == plan.at + 1)
            die();
        if (written >= 0)
            log_call(WRITE, grows, file.st_ino, start, path, "", data, (size_t)written);
    }
    pthread_mutex_unlock(&one_at_a_time);
    return written;
}

ssize_t write(int fd, const void *data, size_t size)
{
    return write_at(fd, data, size, -1);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return write_at(fd, data, size, offset);
}

static ssize_t write_many(int fd, const struct iovec *parts, int count, off_t offset)
{
    size_t size = 0;
    for (int i = 0; i < count; i++)
        size += parts[i].iov_len;
    char *data = malloc(size + 1), *next = data;
    if (data == NULL) {
        errno = ENOMEM;
        return -1;
    }
    for (int i = 0; i < count; i++) {
        memcpy(next, parts[i].iov_base, parts[i].iov_len);
        next += parts[i].iov_len;
    }
    ssize_t written = write_at(fd, data, size, offset);
    free(data);
    return written;
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    char path[PATH_MAX];
    return watched_fd(fd, path) ? write_many(fd, parts, count, -1) : syscall(SYS_writev, fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t offset)
{
    return write_many(fd, parts, count, offset);
}

static int sync_by(long call, int fd)
{
    char path[PATH_MAX];
    struct stat file;
    if (!watched_fd(fd, path) || fstat(fd, &file) != 0)
        return (int)syscall(call, fd);
    pthread_mutex_lock(&one_at_a_time);
    int result = meet(SYNC, 0, 0) == FAIL ? -1 : (int)syscall(call, fd);
    if (result == 0)
        log_call(SYNC, 0, file.st_ino, 0, path, "", "", 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int fsync(int fd)
{
    return sync_by(SYS_fsync, fd);
}

int fdatasync(int fd)
{
    return sync_by(SYS_fdatasync, fd);
}

/* A new size by ftruncate, or room for one by fallocate (mode 0) where `offset` is not -1. */
static int resize(int fd, off_t offset, off_t size)
{
    char path[PATH_MAX];
    struct stat file;
    long call = offset < 0 ? SYS_ftruncate : SYS_fallocate;
    off_t end = offset < 0 ? size : offset + size;
    if (!watched_fd(fd, path) || fstat(fd, &file) != 0)
        return (int)(offset < 0 ? syscall(call, fd, size) : syscall(call, fd, 0, offset, size));
    pthread_mutex_lock(&one_at_a_time);
    int result = meet(TRUNCATE, end > file.st_size, 0) == FAIL ? -1
                 : (int)(offset < 0 ? syscall(call, fd, size) : syscall(call, fd, 0, offset, size));
    if (result == 0 && (offset < 0 || end > file.st_size))
        log_call(TRUNCATE, end > file.st_size, file.st_ino, end, path, "", "", 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int ftruncate(int fd, off_t size)
{
    if (size < 0) {
        errno = EINVAL;
        return -1;
    }
    return resize(fd, -1, size);
}

int fallocate(int fd, int mode, off_t offset, off_t size)
{
    return mode == 0 && offset >= 0 ? resize(fd, offset, size) : (int)syscall(SYS_fallocate, fd, mode, offset, size);
}

int posix_fallocate(int fd, off_t offset, off_t size)
{
    int before = errno, result = fallocate(fd, 0, offset, size) == 0 ? 0 : errno;
    errno = before;
    return result;
}

static int open_from(int folder, const char *name, int flags, mode_t mode)
{
    char path[PATH_MAX];
    struct stat file;
    if (!(flags & (O_CREAT | O_TRUNC)) || !watched_name(folder, name, path))
        return (int)syscall(SYS_openat, folder, name, flags, mode);
    pthread_mutex_lock(&one_at_a_time);
    int there = lstat(path, &file) == 0;
    int makes = !there && flags & O_CREAT, empties = there && flags & O_TRUNC && file.st_size > 0;
    int fd = -1;
    if (!(makes || empties) || meet(makes ? CREATE : TRUNCATE, makes, 0) != FAIL)
        fd = (int)syscall(SYS_openat, folder, name, flags, mode);
    if (fd >= 0 && makes && fstat(fd, &file) == 0)
        log_call(CREATE, 1, file.st_ino, 0, path, "", "", 0);
    else if (fd >= 0 && empties)
        log_call(TRUNCATE, 0, file.st_ino, 0, path, "", "", 0);
    pthread_mutex_unlock(&one_at_a_time);
    return fd;
}

static mode_t mode_of(int flags, va_list rest)
{
    return flags & O_CREAT || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(rest, mode_t) : 0;
}

#define OPEN(folder)                                                                                                   \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = mode_of(flags, rest);                                                                                \
    va_end(rest);                                                                                                      \
    return open_from(folder, name, flags, mode)

int open(const char *name, int flags, ...)
{
    OPEN(AT_FDCWD);
}

int openat(int folder, const char *name, int flags, ...)
{
    OPEN(folder);
}

#ifdef __GLIBC__ /* musl has no second names */
int open64(const char *name, int flags, ...)
{
    OPEN(AT_FDCWD);
}

int openat64(int folder, const char *name, int flags, ...)
{
    OPEN(folder);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
    return write_at(fd, data, size, offset);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off64_t offset)
{
    return write_many(fd, parts, count, offset);
}

int ftruncate64(int fd, off64_t size)
{
    return ftruncate(fd, size);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t size)
{
    return fallocate(fd, mode, offset, size);
}

int posix_fallocate64(int fd, off64_t offset, off64_t size)
{
    return posix_fallocate(fd, offset, size);
}
#endif

/* Whether a folder can be made there: nothing is there yet, and what is above it is. */
static int is_free(const char *path)
{
    char above[PATH_MAX];
    struct stat file;
    snprintf(above, sizeof above, "%s", path);
    char *end = strrchr(above, '/');
    if (end == NULL || lstat(path, &file) == 0)
        return 0;
    *end = '\0';
    return stat(above, &file) == 0;
}

int mkdirat(int folder, const char *name, mode_t mode)
{
    char path[PATH_MAX];
    if (!watched_name(folder, name, path) || !is_free(path))
        return (int)syscall(SYS_mkdirat, folder, name, mode);
    pthread_mutex_lock(&one_at_a_time);
    int result = meet(MKDIR, 1, 0) == FAIL ? -1 : (int)syscall(SYS_mkdirat, folder, name, mode);
    if (result == 0)
        log_call(MKDIR, 1, 0, 0, path, "", "", 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}

int renameat2(int from, const char *old, int to, const char *new, unsigned int flags)
{
    char path[PATH_MAX], other[PATH_MAX];
    struct stat file;
    int ours = watched_name(from, old, path);
    ours = watched_name(to, new, other) || ours;
    if (!ours || lstat(path, &file) != 0)
        return (int)syscall(SYS_renameat2, from, old, to, new, flags);
    pthread_mutex_lock(&one_at_a_time);
    int result = meet(RENAME, 0, 0) == FAIL ? -1 : (int)syscall(SYS_renameat2, from, old, to, new, flags);
    if (result == 0)
        log_call(RENAME, 0, file.st_ino, 0, path, other, "", 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int renameat(int from, const char *old, int to, const char *new)
{
    return renameat2(from, old, to, new, 0);
}

int rename(const char *old, const char *new)
{
    return renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

int unlinkat(int folder, const char *name, int flags)
{
    char path[PATH_MAX];
    struct stat file;
    if (!watched_name(folder, name, path) || lstat(path, &file) != 0)
        return (int)syscall(SYS_unlinkat, folder, name, flags);
    pthread_mutex_lock(&one_at_a_time);
    int result = meet(UNLINK, 0, 0) == FAIL ? -1 : (int)syscall(SYS_unlinkat, folder, name, flags);
    if (result == 0)
        log_call(UNLINK, 0, file.st_ino, 0, path, "", "", 0);
    pthread_mutex_unlock(&one_at_a_time);
    return result;
}

int unlink(const char *name)
{
    return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char *name)
{
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

int remove(const char *name)
{
    struct stat file;
    return lstat(name, &file) == 0 && S_ISDIR(file.st_mode) ? rmdir(name) : unlink(name);
}
