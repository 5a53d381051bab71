// One call as it comes through a pipe and goes back: what driver.cpp's table of kernels is written over.
//
//   request   string name, u32 count, arguments: a tag, then
//             'i' int64 | 'd' float64 | 's' string | 'p' int64 threads, string isa | 'r' u32 an earlier array, again
//             'a' u32 item bytes, u32 dimensions, int64 each, then the items
//   response  u8 1, u32 count, results: 'i' int64 | 's' string | 'a' char item type, u32 dimensions, int64 each, items;
//             u32 count, arrays written: u32 argument, then the items
//   or        u8 0, string message
//
// A string is u32 bytes and then the bytes. Numbers are little-endian, as in the processes on both ends.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "formats/formats.h"
#include "pages.h"
#include "thread_pool.h"

namespace smallthinker {

inline void read_bytes(void* to, size_t bytes) {
  if (bytes > 0 && std::fread(to, 1, bytes, stdin) != bytes) throw std::runtime_error("the request ends early");
}
template <class T>
T read_number() {
  T x;
  read_bytes(&x, sizeof(x));
  return x;
}
inline std::string read_string() {
  std::string text(read_number<uint32_t>(), '\0');
  read_bytes(text.data(), text.size());
  return text;
}

inline void write_bytes(const void* from, size_t bytes) {
  if (bytes > 0 && std::fwrite(from, 1, bytes, stdout) != bytes) std::exit(1);
}
template <class T>
void write_number(T x) { write_bytes(&x, sizeof(x)); }
inline void write_string(const std::string& text) {
  write_number(static_cast<uint32_t>(text.size()));
  write_bytes(text.data(), text.size());
}

// Memory of its own for every array, which ends the program when it is read past the end: by a sanitizer, to the byte,
// or else at the unreadable page behind it, since kernels want the start aligned.
struct Array {
  std::vector<int64_t> shape;
  size_t item_bytes, bytes;
  uint8_t* data = nullptr;

  Array(std::vector<int64_t> dimensions, size_t bytes_of_item)
      : shape(std::move(dimensions)), item_bytes(bytes_of_item), bytes(bytes_of_item) {
    for (int64_t n : shape) bytes *= static_cast<size_t>(n);
#ifdef __SANITIZE_ADDRESS__
    data = new uint8_t[bytes];
#else
    data = pages::before_unreadable(whole()) - whole();
#endif
  }
  ~Array() {
#ifdef __SANITIZE_ADDRESS__
    delete[] data;
#else
    pages::give_back(data + whole(), whole());
#endif
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

 private:
  static constexpr size_t kAlign = 8;
  size_t whole() const { return (bytes + kAlign - 1) / kAlign * kAlign; }
};

class Call {
 public:
  using Pools = std::map<std::pair<int64_t, std::string>, std::unique_ptr<ThreadPool>>;

  // Reads everything but the name.
  Call(Pools& pools, const Isa& (*find)(const std::string&)) {
    arguments_.resize(read_number<uint32_t>());
    for (Argument& argument : arguments_) read(argument, pools, find);
  }

  size_t count() const { return arguments_.size(); }
  int64_t integer(size_t i) const { return get(i, 'i').integer; }
  double real(size_t i) const { return get(i, 'd').real; }
  const std::string& text(size_t i) const { return get(i, 's').text; }
  ThreadPool& pool(size_t i) const { return *get(i, 'p').pool; }
  Quant quant(size_t i) const {
    return quant_named(text(i));
  }
  // From five arguments: formats (three names with commas between them), hidden, ffn, activation, gated. biased: the number
  // of one more, which may be missing.
  FfnShape ffn_shape(size_t i, size_t biased) const {
    const std::string& names = text(i);
    const size_t first = names.find(','), second = names.find(',', first + 1);
    const FfnFormats formats{quant_named(names.substr(0, first)), quant_named(names.substr(first + 1, second - first - 1)),
                             quant_named(names.substr(second + 1))};
    int activation = 0;
    while (text(i + 3) != kActivations[activation]) ++activation;
    const bool is_biased = biased < arguments_.size() && integer(biased) != 0;
    return {formats, integer(i + 1), integer(i + 2), static_cast<Activation>(activation), integer(i + 4) != 0, is_biased};
  }
  Layout layout(size_t i) const { return text(i) == "tiles" ? Layout::tiles : Layout::rows; }

  int64_t size(size_t i, size_t dimension) const { return get(i, 'a').array->shape.at(dimension); }
  // Neither read nor written as far as types say.
  template <class T>
  T* array(size_t i) const {
    const Array& array = *get(i, 'a').array;
    if (array.item_bytes != sizeof(T)) {
      throw std::runtime_error("argument " + std::to_string(i) + " has items of " + std::to_string(array.item_bytes));
    }
    return reinterpret_cast<T*>(array.data);
  }
  template <class T>
  const T* in(size_t i) const { return array<T>(i); }
  template <class T>
  T* out(size_t i) {
    written_.insert(i);
    return array<T>(i);
  }

  void result(int64_t x) { results_.push_back({'i', x, {}, nullptr, 0}); }
  void result(const std::string& x) { results_.push_back({'s', 0, x, nullptr, 0}); }
  template <class T>
  T* result(std::vector<int64_t> shape) {
    const char type = std::is_floating_point_v<T> ? 'f' : 'u';
    results_.push_back({'a', 0, {}, std::make_unique<Array>(std::move(shape), sizeof(T)), type});
    return reinterpret_cast<T*>(results_.back().array->data);
  }

  void respond() const {
    write_number<uint8_t>(1);
    write_number(static_cast<uint32_t>(results_.size()));
    for (const Result& result : results_) {
      write_number(result.tag);
      if (result.tag == 'i') write_number(result.integer);
      if (result.tag == 's') write_string(result.text);
      if (result.tag != 'a') continue;
      write_number(result.type);
      write_number(static_cast<uint32_t>(result.array->shape.size()));
      for (int64_t n : result.array->shape) write_number(n);
      write_bytes(result.array->data, result.array->bytes);
    }
    write_number(static_cast<uint32_t>(written_.size()));
    for (size_t i : written_) {
      write_number(static_cast<uint32_t>(i));
      write_bytes(arguments_[i].array->data, arguments_[i].array->bytes);
    }
  }

 private:
  static Quant quant_named(const std::string& name) {
    const int found = find_format(name);
    if (found < 0) throw std::runtime_error("there is no format " + name);
    return static_cast<Quant>(found);
  }

  struct Argument {
    char tag = 0;
    int64_t integer = 0;
    double real = 0.0;
    std::string text;
    ThreadPool* pool = nullptr;
    std::shared_ptr<Array> array;
  };
  struct Result {
    char tag;
    int64_t integer;
    std::string text;
    std::unique_ptr<Array> array;
    char type;
  };

  void read(Argument& argument, Pools& pools, const Isa& (*find)(const std::string&)) {
    argument.tag = read_number<char>();
    switch (argument.tag) {
      case 'i': argument.integer = read_number<int64_t>(); break;
      case 'd': argument.real = read_number<double>(); break;
      case 's': argument.text = read_string(); break;
      case 'p': {
        const int64_t threads = read_number<int64_t>();
        const std::string isa = read_string();
        std::unique_ptr<ThreadPool>& pool = pools[{threads, isa}];
        if (!pool) pool = std::make_unique<ThreadPool>(static_cast<int>(threads), find(isa));
        argument.pool = pool.get();
        break;
      }
      case 'r':
        argument.tag = 'a';
        argument.array = arguments_.at(read_number<uint32_t>()).array;
        break;
      case 'a': {
        const size_t item_bytes = read_number<uint32_t>();
        std::vector<int64_t> shape(read_number<uint32_t>());
        for (int64_t& n : shape) n = read_number<int64_t>();
        argument.array = std::make_shared<Array>(std::move(shape), item_bytes);
        read_bytes(argument.array->data, argument.array->bytes);
        break;
      }
      default: throw std::runtime_error(std::string("the request has the tag ") + argument.tag);
    }
  }

  const Argument& get(size_t i, char tag) const {
    const Argument& argument = arguments_.at(i);
    if (argument.tag != tag) throw std::runtime_error("argument " + std::to_string(i) + " has the wrong type");
    return argument;
  }
  std::vector<Argument> arguments_;
  std::vector<Result> results_;
  std::set<size_t> written_;
};

}  // namespace smallthinker
