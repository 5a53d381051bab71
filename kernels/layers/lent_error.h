// What a call of the cache's module left as Python's error, on its way to who speaks Python here (bindings/).
#pragma once

#include <exception>

namespace smallthinker {

struct LentError : std::exception {};

inline void throw_unless(bool went_well) {
  if (!went_well) throw LentError();
}

}  // namespace smallthinker
