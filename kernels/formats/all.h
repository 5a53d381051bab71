// Every format's header, for who works with their values. The micro-kernels include this after their vectors, and get
// the vector code of each as well.
#pragma once

#include "formats/bf16.h"
#include "formats/f16.h"
#include "formats/f32.h"
#include "formats/q4_0.h"
#include "formats/q8_0.h"
