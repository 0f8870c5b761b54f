// Every op, by family.
#pragma once
#include "autograd/ops/bucket_summary.h"
#include "autograd/ops/bucketed_attention.h"
#include "autograd/ops/cross_entropy.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/embedding.h"
#include "autograd/ops/layer_norm.h"
#include "autograd/ops/matmul.h"
#include "autograd/ops/movement.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/reversible.h"
#include "autograd/ops/routing.h"
#include "autograd/ops/softmax.h"
