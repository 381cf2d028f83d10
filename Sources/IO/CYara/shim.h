#pragma once
#include <yara.h>
