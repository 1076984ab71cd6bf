/* LD_PRELOAD library that records every change which a process makes below $RECORD_FOLDER to $RECORD_LOG.
 *
 * A record: op (1 byte), lengths of two paths (2 x u32), offset and length (2 x i64), the paths, the data.
 * W write, T truncate, S fsync, O create (and C: create and truncate), R rename, U unlink, M mkdir, D rmdir.
 * Changes of times and modes are left out: no promise rests on them.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int log_file = -2;
static const char *folder;
static size_t folder_length;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static ssize_t (*plain_write)(int, const void *, size_t);

static void start(void) {
    if (log_file != -2) return;
    int (*plain_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    plain_write = dlsym(RTLD_NEXT, "write");
    folder = getenv("RECORD_FOLDER");
    const char *log = getenv("RECORD_LOG");
    log_file = -1;
    if (!folder || !log) return;
    folder_length = strlen(folder);
    log_file = plain_open(log, O_WRONLY | O_CREAT | O_APPEND, 0644);
}

static int inside(const char *path) { return log_file >= 0 && !strncmp(path, folder, folder_length); }

static int path_of(int file, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return inside(path);
}

static void record(char op, const char *path, const char *target, int64_t offset, int64_t length, const void *data) {
    uint32_t first = strlen(path), second = target ? strlen(target) : 0;
    size_t total = 1 + 4 + 4 + 8 + 8 + first + second + (data ? length : 0), done = 0;
    char *record = malloc(total), *at = record;
    *at++ = op;
    memcpy(at, &first, 4), at += 4;
    memcpy(at, &second, 4), at += 4;
    memcpy(at, &offset, 8), at += 8;
    memcpy(at, &length, 8), at += 8;
    memcpy(at, path, first), at += first;
    if (second) memcpy(at, target, second), at += second;
    if (data) memcpy(at, data, length);
    pthread_mutex_lock(&lock);
    while (done < total) {
        ssize_t count = plain_write(log_file, record + done, total - done);
        if (count <= 0) abort();
        done += count;
    }
    pthread_mutex_unlock(&lock);
    free(record);
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    start(); \
    char path[4096] __attribute__((unused))

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    int ours = log_file >= 0 && file != log_file && path_of(file, path, sizeof path);
    int64_t offset = -1;
    if (ours) {
        struct stat now;
        offset = fcntl(file, F_GETFL) & O_APPEND ? (fstat(file, &now), now.st_size) : lseek(file, 0, SEEK_CUR);
    }
    ssize_t count = real(file, data, size);
    if (ours && count > 0) record('W', path, 0, offset, count, data);
    return count;
}

#define PWRITE(name, type) \
    ssize_t name(int file, const void *data, size_t size, type offset) { \
        REAL(name); \
        ssize_t count = real(file, data, size, offset); \
        if (count > 0 && path_of(file, path, sizeof path)) record('W', path, 0, offset, count, data); \
        return count; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(name, type) \
    int name(int file, type length) { \
        REAL(name); \
        int result = real(file, length); \
        if (!result && path_of(file, path, sizeof path)) record('T', path, 0, length, 0, 0); \
        return result; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(name) \
    int name(int file) { \
        REAL(name); \
        int result = real(file); \
        if (!result && path_of(file, path, sizeof path)) record('S', path, 0, 0, 0, 0); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char *from, const char *to) {
    REAL(rename);
    int result = real(from, to);
    if (!result && inside(from)) record('R', from, to, 0, 0, 0);
    return result;
}

#define ON_PATH(name, letter) \
    int name(const char *which) { \
        REAL(name); \
        int result = real(which); \
        if (!result && inside(which)) record(letter, which, 0, 0, 0, 0); \
        return result; \
    }
ON_PATH(unlink, 'U')
ON_PATH(rmdir, 'D')

int mkdir(const char *which, mode_t mode) {
    REAL(mkdir);
    int result = real(which, mode);
    if (!result && inside(which)) record('M', which, 0, 0, 0, 0);
    return result;
}

static void opened(int flags, int file) {
    char path[4096];
    if (file >= 0 && flags & (O_CREAT | O_TRUNC) && path_of(file, path, sizeof path))
        record(flags & O_TRUNC ? 'C' : 'O', path, 0, 0, 0, 0);
}

#define MODE \
    mode_t mode = 0; \
    if (flags & O_CREAT) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, int); \
        va_end(rest); \
    }
#define OPEN(name) \
    int name(const char *which, int flags, ...) { \
        MODE REAL(name); \
        int file = real(which, flags, mode); \
        opened(flags, file); \
        return file; \
    }
#define OPENAT(name) \
    int name(int from, const char *which, int flags, ...) { \
        MODE REAL(name); \
        int file = real(from, which, flags, mode); \
        opened(flags, file); \
        return file; \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
