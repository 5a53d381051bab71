// What a call of another module's left as Python's error, on its way to whoever speaks Python here (bindings.cpp).
#pragma once

#include <exception>

namespace smallthinker {

struct LentError : std::exception {};

inline void throw_unless(bool went_well) {
  if (!went_well) throw LentError();
}

}  // namespace smallthinker
