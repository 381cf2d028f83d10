#pragma once
#include <yara.h>

// Members of anonymous unions and macros that Swift does not import.

static inline const char *memq_yara_rule_name(const YR_RULE *rule) { return rule->identifier; }
static inline const char *memq_yara_rule_namespace(const YR_RULE *rule) { return rule->ns->name; }
static inline int memq_yara_version_major(void) { return YR_MAJOR_VERSION; }
static inline int memq_yara_version_minor(void) { return YR_MINOR_VERSION; }
static inline int memq_yara_version_micro(void) { return YR_MICRO_VERSION; }
static inline unsigned memq_yara_rule_count(const YR_RULES *rules) { return rules->num_rules; }
