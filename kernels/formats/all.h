// Every format's header, for who works with their values. The micro-kernels include this after their vectors, and get
// the vector code of each as well.
#pragma once

#include "formats/blocks_256/iq4_xs.h"
#include "formats/blocks_256/q2_k.h"
#include "formats/blocks_256/q3_k.h"
#include "formats/blocks_256/q4_k.h"
#include "formats/blocks_256/q5_k.h"
#include "formats/blocks_256/q6_k.h"
#include "formats/blocks_32/iq4_nl.h"
#include "formats/blocks_32/mxfp4.h"
#include "formats/blocks_32/q4_0.h"
#include "formats/blocks_32/q4_1.h"
#include "formats/blocks_32/q5_0.h"
#include "formats/blocks_32/q5_1.h"
#include "formats/blocks_32/q8_0.h"
#include "formats/elements/bf16.h"
#include "formats/elements/f16.h"
#include "formats/elements/f32.h"
