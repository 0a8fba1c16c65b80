/* A wall clock that is off: preloaded into a program, it adds the seconds that stand in the file named by WALL_CLOCK, an
 * int64_t, to every answer about the wall clock, whenever they are changed. The monotonic clock stays as it is.
 *
 * libfaketime 0.9.10, which Debian 12 and Ubuntu 24.04 have, is not used: with FAKETIME_DONT_FAKE_MONOTONIC it answers
 * EINVAL to clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME), which is Python's time.sleep.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *ahead;

__attribute__((constructor)) static void open_file(void) {
    const char *path = getenv("WALL_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *found = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *ahead, PROT_READ, MAP_SHARED, file, 0);
    if (found == MAP_FAILED) {
        fputs("WALL_CLOCK names no clock\n", stderr);
        abort();
    }
    ahead = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    long result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) && ahead) now->tv_sec += *ahead;
    return (int)result;
}

time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict into, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    into->tv_sec = now.tv_sec;
    into->tv_usec = now.tv_nsec / 1000;
    return 0;
}
