// Stands between the queue and the C library, preloaded into a process of its own: reads that come short, fail, or wait
// for the test's word, and kernels that lack a call. What it does is told by the environment.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static long setting(const char* name, long otherwise) {
  const char* text = getenv(name);
  return text == NULL ? otherwise : atol(text);
}

// Whether a fault strikes: SHIM_TIMES of them do, all if it isn't set.
static int strikes(void) {
  static long struck;
  const long most = setting("SHIM_TIMES", INT32_MAX);
  return __atomic_load_n(&struck, __ATOMIC_RELAXED) < most && __atomic_fetch_add(&struck, 1, __ATOMIC_RELAXED) < most;
}

static int has(off_t byte, off_t offset, ssize_t bytes) { return byte != -1 && byte >= offset && byte < offset + bytes; }

// SHIM_GATE: every read first takes a byte from this pipe. SHIM_SHORT: no more bytes at once. SHIM_EIO: this offset is
// broken. SHIM_FLIP: this offset's byte comes with a bit flipped. SHIM_EINTR: the first read is interrupted.
ssize_t pread(int fd, void* into, size_t bytes, off_t offset) {
  static ssize_t (*real)(int, void*, size_t, off_t);
  if (real == NULL) real = (ssize_t(*)(int, void*, size_t, off_t))dlsym(RTLD_NEXT, "pread");
  const long gate = setting("SHIM_GATE", -1), most = setting("SHIM_SHORT", 0), broken = setting("SHIM_EIO", -1);
  const int is_probe = bytes == 4096 && setting("SHIM_PROBE_OFFSET", -1) == offset;
  char token;
  if (gate >= 0 && !is_probe) {
    while (read(gate, &token, 1) < 0 && errno == EINTR) {}
  }
  static int interrupted;
  if (setting("SHIM_EINTR", 0) && !__atomic_exchange_n(&interrupted, 1, __ATOMIC_RELAXED)) {
    errno = EINTR;
    return -1;
  }
  if (has(broken, offset, bytes) && strikes()) {
    if (broken > offset) bytes = broken - offset;  // up to the broken block
    else {
      errno = EIO;
      return -1;
    }
  }
  if (most > 0 && bytes > (size_t)most) bytes = most;
  const ssize_t count = real(fd, into, bytes, offset);
  const off_t flipped = setting("SHIM_FLIP", -1);
  if (has(flipped, offset, count) && strikes()) ((unsigned char*)into)[flipped - offset] ^= 1;
  return count;
}

ssize_t pread64(int fd, void* into, size_t bytes, off_t offset) { return pread(fd, into, bytes, offset); }

// SHIM_NO_SYSCALL: the number of one that this kernel lacks.
long syscall(long number, ...) {
  static long (*real)(long, ...);
  if (real == NULL) real = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
  if (number == setting("SHIM_NO_SYSCALL", -1)) {
    errno = EPERM;
    return -1;
  }
  va_list list;
  va_start(list, number);
  long a[6];
  for (int i = 0; i < 6; ++i) a[i] = va_arg(list, long);
  va_end(list);
  return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

// SHIM_NO_POPULATE: as before Linux 5.14.
int madvise(void* at, size_t bytes, int advice) {
  static int (*real)(void*, size_t, int);
  if (real == NULL) real = (int (*)(void*, size_t, int))dlsym(RTLD_NEXT, "madvise");
  if (advice == 22 && setting("SHIM_NO_POPULATE", 0)) {
    errno = EINVAL;
    return -1;
  }
  return real(at, bytes, advice);
}
