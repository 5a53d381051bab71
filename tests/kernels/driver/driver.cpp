// The kernels as a program: reads calls from standard input and writes what they give to standard output (wire.h), so
// that the tests of tests/kernels can run them where Python doesn't: on an emulated CPU, or compiled with sanitizers.
//
// Arguments come in the order of _kernels.pyi. Nothing is checked but their types: the checks belong to the bindings.
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#else
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <algorithm>

#include "kernels.h"
#include "wire.h"

namespace smallthinker {
namespace {

const std::map<std::string, void (*)(Call&)> kKernels{
    {"formats",
     [](Call& c) {
       for (const FormatSizes& format : kFormats) {
         c.result(std::string(format.name));
         c.result(format.block);
         c.result(format.block_bytes);
       }
     }},
    {"can_pack", [](Call& c) { c.result(int64_t{can_pack(c.quant(0))}); }},
    {"has_rows", [](Call& c) { c.result(int64_t{sizes_of(c.quant(0)).has_rows}); }},
    {"activations",
     [](Call& c) {
       for (const char* name : kActivations) c.result(std::string(name));
     }},
    {"packed_bytes",
     [](Call& c) { c.result(packed_bytes(c.quant(0), c.layout(1), c.integer(2), c.integer(3))); }},
    {"record_sections",
     [](Call& c) {
       const RecordSections sections = record_sections(c.ffn_shape(0, 5));
       for (const Section& s : {sections.gate, sections.up, sections.down, sections.gate_bias, sections.up_bias, sections.down_bias}) {
         if (s.rows == 0) continue;
         c.result(std::string(s.layout == Layout::tiles ? "tiles" : "rows"));
         for (int64_t n : {int64_t{s.is_transposed}, s.rows, s.cols, s.offset, s.bytes}) c.result(n);
       }
     }},
    {"pack",
     [](Call& c) {
       const int64_t rows = c.size(2, 0), cols = c.size(2, 1);
       uint8_t* data = c.result<uint8_t>({packed_bytes(c.quant(0), c.layout(1), rows, cols)});
       pack(c.quant(0), c.layout(1), c.in<float>(2), rows, cols, data);
     }},
    {"repack",
     [](Call& c) {
       const FormatSizes& sizes = sizes_of(c.quant(0));
       const int64_t rows = c.size(2, 0), cols = c.size(2, 1) / sizes.block_bytes * sizes.block;
       repack(c.quant(0), c.layout(1), c.in<uint8_t>(2), rows, cols, c.result<uint8_t>({packed_bytes(c.quant(0), c.layout(1), rows, cols)}));
     }},
    {"unpack",
     [](Call& c) {
       const int64_t rows = c.integer(3), cols = c.integer(4);
       unpack(c.quant(0), c.layout(1), c.in<uint8_t>(2), rows, cols, c.result<float>({rows, cols}));
     }},
    {"embed",
     [](Call& c) {
       embed(c.quant(0), c.in<uint8_t>(1), c.integer(3), c.in<int32_t>(4), c.size(4, 0), c.out<float>(5));
     }},
    {"rmsnorm",
     [](Call& c) {
       const Norm how{c.size(0, 1), static_cast<float>(c.real(2)), false, c.in<float>(1), nullptr};
       norm(how, c.in<float>(0), c.size(0, 0), c.out<float>(3));
     }},
    {"linear",
     [](Call& c) {
       const Matrix weights{c.quant(1), c.in<uint8_t>(2), c.integer(3), c.integer(4)};
       linear(c.pool(0), {{weights, c.out<float>(6)}}, c.in<float>(5), c.size(5, 0));
     }},
    {"linear_groups",
     [](Call& c) {
       linear_groups(c.pool(0), c.quant(1), c.in<uint8_t>(2), c.integer(3), c.integer(4), c.in<int32_t>(5), c.size(5, 0),
                     c.in<float>(6), c.size(6, 0), c.out<float>(7));
     }},
    {"finish_logits",
     [](Call& c) {
       const LogitsEnd how{c.in<float>(2), static_cast<float>(c.real(3)), static_cast<float>(c.real(4))};
       finish_logits(c.pool(0), how, c.out<float>(1), c.size(1, 0), c.size(1, 1));
     }},
    {"rope_angles",
     [](Call& c) {
       rope_angles(c.in<int64_t>(0), c.size(0, 0), c.in<double>(1), c.in<double>(2), c.size(1, 0), c.out<float>(3),
                   c.out<float>(4));
     }},
    {"rope",
     [](Call& c) {
       const Angles angles{c.in<float>(1), c.in<float>(2), c.size(1, 1)};
       const Rotation how{0, angles.pairs, c.text(3) == "interleaved"};
       rope(c.out<float>(0), angles, 0, how, c.size(0, 0), c.size(0, 1), c.size(0, 2));
     }},
    {"route",
     [](Call& c) {
       const auto of_experts = [&](size_t i) { return c.size(i, 0) == 0 ? nullptr : c.in<float>(i); };
       Scoring how{c.integer(1), c.text(2) == "softmax" ? Gating::softmax : Gating::sigmoid};
       how.over_all = c.integer(5) != 0;
       how.normalise = c.integer(6) != 0;
       how.bias = of_experts(7);
       how.bias_chooses = c.integer(8) != 0;
       how.groups = c.integer(9);
       how.kept_groups = c.integer(10);
       how.scale = static_cast<float>(c.real(11));
       how.expert_scale = of_experts(12);
       route(c.in<float>(0), c.size(0, 0), c.size(0, 1), how, c.out<int32_t>(3), c.out<float>(4));
     }},
    {"kv_append",
     [](Call& c) {
       kv_append(c.pool(0), c.in<float>(2), c.in<float>(3), c.size(2, 0),
                 {c.quant(1), c.size(4, 0), c.size(4, 1) * kLanes, c.size(2, 2), c.out<uint8_t>(4), c.out<uint8_t>(5)},
                 c.integer(6));
     }},
    {"attention",
     [](Call& c) {
       if (c.size(2, 0) == 0) return;
       Scores scores;
       scores.window = c.integer(6);
       scores.scale = static_cast<float>(c.real(8));
       if (c.count() > 9) {
         scores.softcap = static_cast<float>(c.real(9));
         scores.sinks = c.in<float>(10);
         scores.chunk = c.integer(11);
       }
       attention(c.pool(0), c.in<float>(2), c.size(2, 0), c.size(2, 1),
                 {c.quant(1), c.size(3, 0), c.size(3, 1) * kLanes, c.size(2, 2), c.array<uint8_t>(3), c.array<uint8_t>(4)},
                 c.integer(5), scores, c.out<float>(7));
     }},
    {"experts",
     [](Call& c) {
       FfnShape shape = c.ffn_shape(1, 13);
       if (shape.activation == Activation::clamped_swiglu) shape.clamp = {static_cast<float>(c.real(14)), static_cast<float>(c.real(15))};
       c.result(experts(c.pool(0), {shape, c.in<float>(6), c.size(6, 0), c.in<uint8_t>(7), c.size(7, 1),
                                    c.in<int32_t>(8), c.in<int32_t>(9), c.in<int32_t>(10), c.size(8, 0), c.integer(11),
                                    c.out<float>(12)}));
     }},
    {"combine",
     [](Call& c) {
       combine(c.pool(0), c.out<float>(1), c.in<float>(2), c.in<float>(3), nullptr, c.size(1, 0), c.size(3, 1), c.size(1, 1), {});
     }},
    {"add", [](Call& c) { add(c.out<float>(0), c.in<float>(1), c.size(0, 0) * c.size(0, 1)); }},
    {"sample",
     [](Call& c) {
       c.result(sample(c.pool(0), c.in<float>(1), c.size(1, 0), {c.real(2), c.integer(3), c.real(4), c.real(5)}, c.real(6)));
     }},
    {"top_ids",
     [](Call& c) { top_ids(c.pool(0), c.in<float>(1), c.size(1, 0), c.size(2, 0), c.out<int32_t>(2)); }},
    {"penalize",
     [](Call& c) {
       penalize(c.out<float>(0), c.size(0, 0), c.in<int32_t>(1), c.size(1, 0), static_cast<float>(c.real(2)));
     }},
    {"read_memory",
     [](Call& c) { c.result(static_cast<int64_t>(read_memory(c.pool(0), c.in<uint8_t>(1), c.size(1, 0)))); }},
    {"multiply_add", [](Call& c) { c.result(multiply_add(c.pool(0), c.integer(1), c.integer(2) != 0)); }},
    {"BLOCK", [](Call& c) { c.result(kBlock); }},
    {"TILE_ROWS", [](Call& c) { c.result(kTileRows); }},
    {"KV_GROUP", [](Call& c) { c.result(kLanes); }},
    {"KV_SPLIT", [](Call& c) { c.result(kKeySplit); }},
};

#if SMALLTHINKER_COMPILES_AVXVNNI && !defined(_WIN32)
// Virtual machines may hide the flag of AVX-VNNI and run its instructions all the same. So ask the CPU: a child
// executes one, and dies of it or not.
bool runs_avxvnni() {
  static const bool runs = [] {
    const pid_t child = fork();
    if (child == 0) {
      asm volatile("%{vex%} vpdpbusd %%ymm0, %%ymm0, %%ymm0" ::: "xmm0");
      _exit(0);
    }
    int status = 1;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
  }();
  return runs;
}
#endif

std::vector<const Isa*> runnable_isas() {
  std::vector<const Isa*> isas = available_isas();
#if SMALLTHINKER_COMPILES_AVXVNNI && !defined(_WIN32)
  const bool is_there = std::find(isas.begin(), isas.end(), &isa_avx2vnni()) != isas.end();
  if (!is_there && std::find(isas.begin(), isas.end(), &isa_avx2()) != isas.end() && runs_avxvnni()) {
    isas.push_back(&isa_avx2vnni());
  }
#endif
  return isas;
}

const Isa& find_runnable(const std::string& name) {
  for (const Isa* isa : runnable_isas()) {
    if (name == isa->name) return *isa;
  }
  throw std::runtime_error("this CPU can't run " + name);
}

// False at the end of the input.
bool answer(Call::Pools& pools) {
  uint32_t length;
  if (std::fread(&length, 1, sizeof(length), stdin) != sizeof(length)) return false;
  std::string name(length, '\0');
  read_bytes(name.data(), name.size());
  Call call(pools, find_runnable);
  if (name == "available_isas") {
    for (const Isa* isa : runnable_isas()) call.result(std::string(isa->name));
  } else {
    kKernels.at(name)(call);
  }
  call.respond();
  std::fflush(stdout);
  return true;
}

}  // namespace
}  // namespace smallthinker

int main() {
#ifdef _WIN32
  for (FILE* stream : {stdin, stdout}) _setmode(_fileno(stream), _O_BINARY);
#endif
  smallthinker::Call::Pools pools;
  try {
    while (smallthinker::answer(pools)) {
    }
  } catch (const std::exception& e) {  // the rest of the input can't be understood any more
    smallthinker::write_number<uint8_t>(0);
    smallthinker::write_string(e.what());
    std::fflush(stdout);
    return 1;
  }
}
