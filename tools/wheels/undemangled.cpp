// In place of libc++'s own, in every module of a wheel: it would be a third of what a module has beside the kernels, to
// spell C++ types that Python has no name for. They stay as the compiler writes them, in messages alone.
#include <cstddef>

extern "C" char* __cxa_demangle(const char* /*mangled*/, char* /*output*/, std::size_t* /*length*/, int* status) {
  constexpr int not_a_mangled_name = -2;
  if (status != nullptr) *status = not_a_mangled_name;
  return nullptr;
}
