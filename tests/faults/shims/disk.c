/* A disk that fails on demand: LD_PRELOAD this. FAULTS_DISK names a directory and FAULTS_DISK_ERRNO a file of four
 * bytes that holds an errno, in the machine's own byte order: 0 while all is well. What it does to files of that directory:
 *
 * ENOSPC, a full disk: nothing can be written or made longer, and every other write is cut short first, as the last one
 *   before a disk is full is.
 * EROFS, a read-only one: nothing can be written or cut.
 * EIO, a broken one: writes are taken, which is to memory, and no sync succeeds. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static volatile int32_t *fault;
static char directory[4096];
static size_t length;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_DISK_ERRNO"), *where = getenv("FAULTS_DISK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *fault, PROT_READ, MAP_SHARED, file, 0);
    if (at == MAP_FAILED || !where || !realpath(where, directory))
        abort();
    length = strlen(directory);
    fault = at;
    close(file);
}

static int within(const char *path) { return strncmp(path, directory, length) == 0 && path[length] == '/'; }

/* The fault of a file that is open, or 0. */
static int struck(int file) {
    int now = fault ? *fault : 0;
    if (!now)
        return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t read = readlink(link, path, sizeof path - 1);
    if (read < 0)
        return 0;
    path[read] = 0;
    return within(path) ? now : 0;
}

/* The same for a change of what it holds. */
static int refused(int file) {
    int now = struck(file);
    return now == EIO ? 0 : now;
}

#define REAL(name)                                                                                                     \
    static __typeof__(&name) real;                                                                                     \
    if (!real)                                                                                                         \
    real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

static int cut_short(int now, size_t size) {
    static int turn;
    return now == ENOSPC && size > 1 && (__atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED) & 1) == 0;
}

ssize_t pwrite64(int file, const void *from, size_t size, off64_t at) {
    REAL(pwrite64);
    int now = refused(file);
    if (now && cut_short(now, size))
        return real(file, from, size / 2, at);
    if (now)
        return errno = now, -1;
    return real(file, from, size, at);
}

ssize_t pwrite(int file, const void *from, size_t size, off_t at) { return pwrite64(file, from, size, at); }

ssize_t write(int file, const void *from, size_t size) {
    REAL(write);
    int now = refused(file);
    if (now && cut_short(now, size))
        return real(file, from, size / 2);
    if (now)
        return errno = now, -1;
    return real(file, from, size);
}

int ftruncate64(int file, off64_t size) {
    REAL(ftruncate64);
    int now = refused(file);
    struct stat was;
    int longer = fstat(file, &was) == 0 && size > was.st_size;
    if (now && (now != ENOSPC || longer))
        return errno = now, -1;
    return real(file, size);
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

int fsync(int file) {
    REAL(fsync);
    if (struck(file) == EIO)
        return errno = EIO, -1;
    return real(file);
}
